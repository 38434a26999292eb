"""How often images of one class are taken for another, as a picture.

Shapes: B images.
"""
# Neither matplotlib nor scikit-learn has types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import warnings
from collections.abc import Sequence

import matplotlib.style
import numpy as np
from jaxtyping import Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
from torch import Tensor

from mar.evaluation.image_grid import one_line


MAX_NUMBERS, MAX_NAMES = 20, 40  # classes: with more, numbers and names would overlap
MAX_LETTERS = 24  # of a name: longer ones would leave no room for the matrix
# The settings of a user's matplotlibrc do not count, and a `$` in a name is a dollar sign.
STYLE = ["default", {"text.parse_math": False}]


def confusion_figure(
    labels: Int[Tensor, " B"], predicted: Int[Tensor, " B"], class_names: Sequence[str]
) -> Figure:
    """Draw the share of each class's images (rows) that is taken for each class (columns).

    The row of a class without images is zero. Between many classes, numbers and names are left
    out.
    """
    num_classes = len(class_names)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="A single label was found")
        shares = confusion_matrix(
            labels.numpy(), predicted.numpy(), labels=range(num_classes), normalize="true"
        )  # (K, K)
    names = [_shorten(one_line(name)) for name in class_names if num_classes <= MAX_NAMES]
    with matplotlib.style.context(STYLE):
        figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        display = ConfusionMatrixDisplay(100 * shares).plot(
            ax=axes,
            cmap="Blues",
            colorbar=False,
            include_values=num_classes <= MAX_NUMBERS,
            values_format=".0f",
            im_kw={"vmin": 0, "vmax": 100},
        )
        axes.set_title("share of the images of each label, in percent")
        axes.set_xlabel("predicted class")
        axes.set_ylabel("label")
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for text in display.text_.flat if display.text_ is not None else []:
            if text.get_text() == "0":
                text.set_text("")
    return figure


def confusion_picture(
    labels: Int[Tensor, " B"], predicted: Int[Tensor, " B"], class_names: Sequence[str]
) -> Image.Image:
    """Return `confusion_figure` as an image."""
    figure = confusion_figure(labels, predicted, class_names)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():  # a letter that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 3]}..."
