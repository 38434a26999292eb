"""A confusion matrix says for each class what its images are taken for."""

import numpy as np
import torch

from mar.evaluation.confusion import confusion_matrix, confusion_picture


def test_a_row_holds_the_shares_of_one_label() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3])
    predicted = torch.tensor([0, 0, 0, 2, 1, 0, 3])
    expected = [[0.75, 0, 0.25, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    matrix = confusion_matrix(labels, predicted, num_classes=4)
    assert torch.equal(matrix, torch.tensor(expected))


def test_the_same_matrix_makes_the_same_picture() -> None:
    matrix = torch.eye(3)
    first, second = (confusion_picture(matrix, ["a", "b", "c"]) for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(second))


def test_other_shares_make_another_picture() -> None:
    names = ["a", "b", "c"]
    good = confusion_picture(torch.eye(3), names)
    bad = confusion_picture(torch.eye(3).flip(0), names)
    assert not np.array_equal(np.asarray(good), np.asarray(bad))


def test_a_thousand_classes_fit() -> None:
    picture = confusion_picture(torch.eye(1000), [f"class {number}" for number in range(1000)])
    assert picture.size == (600, 600)
