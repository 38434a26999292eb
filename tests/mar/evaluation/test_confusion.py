"""The picture of a confusion matrix shows its shares and the class names, whatever they are."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from mar.evaluation.confusion import confusion_figure, confusion_picture


LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 3])
PREDICTED = torch.tensor([0, 0, 0, 2, 1, 0, 3])
NAMES = ["a", "b", "c", "d"]
# As folders and tables may have them: mathtext, TeX, line breaks, controls, other scripts.
UNUSUAL = [
    "$1_$5",
    r"$\frac{1$",
    "x_1^2",
    r"\alpha & 50% {#}",
    "two\nlines\tand a tab",
    "\0\x07\ud800",
    "\N{GRINNING FACE} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}",
    "\N{CJK UNIFIED IDEOGRAPH-732B}",
    "\N{HEBREW LETTER ALEF}",
    "",
    "_hidden",
    "long " * 100,
]


def axes_of(class_names: list[str]) -> Axes:
    return confusion_figure(LABELS, PREDICTED, class_names).axes[0]


def test_a_row_holds_the_shares_of_one_label_in_percent() -> None:
    axes = axes_of(NAMES)
    shares = np.asarray(axes.images[0].get_array())
    assert shares.tolist() == [[75, 0, 25, 0], [50, 50, 0, 0], [0, 0, 0, 0], [0, 0, 0, 100]]
    written = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
    assert (written["75"], written["25"], written["100"]) == ((0, 0), (2, 0), (3, 3))
    assert "0" not in written
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("label", "predicted class")


def test_a_name_with_dollar_signs_is_no_formula() -> None:
    axes = axes_of(["$1_$5", "$x$", r"\alpha", "x_1^2"])
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["$1_$5", "$x$", r"\alpha", "x_1^2"]
        assert not any(tick.get_parse_math() for tick in ticks)


@pytest.mark.parametrize("name", UNUSUAL)
def test_any_name_can_be_drawn(name: str) -> None:
    picture = np.asarray(confusion_picture(LABELS, PREDICTED, [name, "b", "c", "d"]))
    assert picture.shape == (600, 600, 3)
    blue = (picture[:, :, 2] > picture[:, :, 0].astype(int) + 100).mean()
    assert blue > 0.04  # the matrix has kept its room beside the names


@pytest.mark.parametrize("num_classes", [1, 20, 21, 40, 41, 1000])
def test_any_number_of_classes_fits(num_classes: int) -> None:
    labels = torch.arange(num_classes)
    names = [f"class {number}" for number in range(num_classes)]
    axes = confusion_figure(labels, labels, names).axes[0]
    assert len(axes.get_xticklabels()) == (num_classes if num_classes <= 40 else 0)
    assert len(axes.texts) == (num_classes**2 if num_classes <= 20 else 0)
    assert confusion_picture(labels, labels, names).size == (600, 600)
