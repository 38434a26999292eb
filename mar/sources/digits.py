"""The data source `digits`: handwritten digits that come with scikit-learn.

Shapes: N images of a data set.
"""

import hashlib
import io
from typing import Literal

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from mar.data.manifest import Row, Rows, Split
from mar.sources.held_out import hold_out
from mar.sources.source import Collection, DataSource, Surroundings


class DigitsData(DataSource):
    """1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn."""

    source: Literal["digits"] = Field(description="the data set built in")
    image_size: int = Field(
        gt=0, le=16_384, description="side to which the images are scaled, in pixels"
    )
    held_out_fraction: float = Field(gt=0, lt=1, description="share of each class not trained on")
    seed: int = Field(ge=0, description="chooses the images that are held out")

    def collect(self, surroundings: Surroundings) -> Collection:
        """Return the digits as PNG files within the rows."""
        images, labels = load_digits()
        held_out = hold_out(labels, self.held_out_fraction, self.seed)
        rows: list[Row] = []
        for index, image in enumerate(images):
            file = io.BytesIO()
            Image.fromarray(image.numpy()).save(file, "PNG")
            content = file.getvalue()
            split: Split = "held_out" if held_out[index] else "train"
            sha256 = hashlib.sha256(content).digest()
            label = int(labels[index])
            rows.append(Row(f"digits/{index:04d}", content, label, len(content), sha256, split))
        return Collection([str(digit) for digit in range(10)], Rows.collect(rows))


def load_digits() -> tuple[UInt8[Tensor, "N 8 8"], Int64[Tensor, " N"]]:
    """Return the digits of scikit-learn, 0 to 255, and which digit each is."""
    # Here, as it takes seconds to import, and a folder of images does not need it.
    from sklearn import datasets  # pyright: ignore[reportMissingTypeStubs]

    values, labels = datasets.load_digits(return_X_y=True)  # pyright: ignore[reportUnknownVariableType]
    images = torch.tensor(values).reshape(-1, 8, 8) * 255 / 16  # scikit-learn: 0 to 16
    return images.round().to(torch.uint8), torch.tensor(labels, dtype=torch.int64)
