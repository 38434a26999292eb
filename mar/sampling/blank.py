"""Whether generated images are blank: of one colour, or of nothing but extreme values.

Shapes: B images, H W an image in pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from jaxtyping import UInt8
from torch import Tensor


MOST_SATURATED = 0.99  # of an image's values; of the real digits, at 16 px, none has more than 0.65


@dataclass(frozen=True)
class BlankCounts:
    """How many of some images are blank.

    Attributes:
        num_images: All of them.
        num_constant: Those of which all pixels are of one colour.
        num_saturated: Those of which more than `MOST_SATURATED` of the values are 0 or 255,
            all black and all white images among them.
    """

    num_images: int = 0
    num_constant: int = 0
    num_saturated: int = 0

    def __add__(self, other: "BlankCounts") -> "BlankCounts":
        """Return the counts of both sets of images."""
        return BlankCounts(
            self.num_images + other.num_images,
            self.num_constant + other.num_constant,
            self.num_saturated + other.num_saturated,
        )

    def warning(self) -> str | None:
        """Return a warning if an image is blank."""
        if not self.num_constant and not self.num_saturated:
            return None
        return (
            f"of {self.num_images} images, {self.num_constant} are of one colour and "
            f"{self.num_saturated} have hardly a value between black and white: the generator is "
            "trained too little, or its settings are wrong (sample)"
        )


def count_blank(images: UInt8[Tensor, "B 3 H W"]) -> BlankCounts:
    """Count images that show nothing."""
    values = images.flatten(2)  # (B, 3, H W)
    constant = (values == values[:, :, :1]).all(dim=2).all(dim=1)  # (B,)
    extreme = (values == 0) | (values == 255)
    saturated = extreme.float().mean(dim=(1, 2)) > MOST_SATURATED
    return BlankCounts(len(images), int(constant.sum()), int(saturated.sum()))


def count_all_blank(batches: Iterable[UInt8[Tensor, "_ 3 H W"]]) -> BlankCounts:
    """Count images of several batches that show nothing."""
    return sum((count_blank(images) for images in batches), BlankCounts())
