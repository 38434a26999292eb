"""The data source `digits`: handwritten digits that come with scikit-learn."""

import hashlib
import io
from typing import Literal

from PIL import Image
from pydantic import Field

from mar.data.held_out import hold_out
from mar.data.manifest import Row, Rows, Split
from mar.scenes.digits import load_digits
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
