"""The handwritten digits that come with scikit-learn, and which of them scenes are made of.

Shapes: N images.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from mar.data.held_out import hold_out


HELD_OUT_DIGITS = 0.2  # of scikit-learn's, from which held-out scenes are made


class Digits(NamedTuple):
    """Images of digits, 0 to 255, and which digit each is."""

    images: UInt8[Tensor, "N 8 8"]
    labels: Int64[Tensor, " N"]


def split_digits() -> tuple[Digits, Digits]:
    """Return the digits that scenes of training are made of, and those of held-out scenes.

    The split belongs to the benchmark: it is the same whatever the scenes' seed, so what tells
    digits apart in generated scenes learns from no digit of a held-out scene.
    """
    images, labels = load_digits()
    held_out = hold_out(labels, HELD_OUT_DIGITS, seed=0)
    return Digits(images[~held_out], labels[~held_out]), Digits(images[held_out], labels[held_out])


def load_digits() -> tuple[UInt8[Tensor, "N 8 8"], Int64[Tensor, " N"]]:
    """Return the digits of scikit-learn, 0 to 255, and which digit each is."""
    # Here, as it takes seconds to import, and a folder of images does not need it.
    from sklearn import datasets  # pyright: ignore[reportMissingTypeStubs]

    values, labels = datasets.load_digits(return_X_y=True)  # pyright: ignore[reportUnknownVariableType]
    images = torch.tensor(values).reshape(-1, 8, 8) * 255 / 16  # scikit-learn: 0 to 16
    return images.round().to(torch.uint8), torch.tensor(labels, dtype=torch.int64)
