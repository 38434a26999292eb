"""What is known of a latent cache without opening it: how it was made, and the latents' scale."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from mar.config import Config
from mar.files import seal
from mar.latents.posterior import LatentShape
from mar.precision import Precision


TRANSFORM = "ADM centre crop to {size} px"  # what `mar.data.images` does, as a cache tells it


class LatentsConfig(Config):
    """Section `latents` of `params.yaml`: how images are cached as latents."""

    dtype: Literal["float16", "float32"] = Field(description="number type of the cached moments")
    flips: bool = Field(description="cache the mirrored image as well, to train with random flips")
    shard_images: int = Field(gt=0, description="images in a file of the cache")
    batch_size: int = Field(gt=0, description="images encoded at a time")
    precision: Precision = Field(
        description="arithmetic of the encoder: float32, or tf32 (CUDA GPUs alone) or bfloat16, "
        "which are faster on a GPU; metric precision_error says what they do to the latents"
    )
    scale: float | None = Field(
        gt=0, description="latents are multiplied by it (MAR's code: 0.2325); null measures 1 / std"
    )


def latent_std(scale: float | None, std: float | None) -> float:
    """Return what latents are divided by.

    Args:
        scale: Key `latents.scale`, which they are multiplied by; None for 1 / std.
        std: Their measured standard deviation; None where there are no images.
    """
    if scale is not None:
        return 1 / scale
    assert std is not None  # where there are no images, the section must give a scale
    return std


class LatentsInfo(Config):
    """What `latents.json` says of a cache; the one source of the latents' scale."""

    tokenizer: str = Field(description="SHA-256 of the tokenizer's weights")
    transform: str = Field(description="what was done to the images")
    dtype: str = Field(description="number type of the moments")
    flips: bool = Field(description="whether mirrored images are in the cache")
    count: int = Field(description="images")
    num_classes: int = Field(description="classes of the data")
    codebook_size: int | None = Field(description="codes of the tokenizer; null without a codebook")
    shape: list[int] = Field(description="channels, height and width of a latent")
    latent_std: float = Field(
        description="latents are divided by it: their std, or 1 / latents.scale"
    )
    class_counts: list[int] = Field(description="images of each class, each counted once")
    largest: float | None = Field(
        description="largest absolute value of a latent, with 3 standard deviations where a latent "
        "has a variance; null without images"
    )
    mean: float | None = Field(description="mean of sampled latents; null without images")
    std: float | None = Field(description="their standard deviation")
    channel_mean: list[float] = Field(description="mean of each channel")
    channel_std: list[float] = Field(description="standard deviation of each channel")

    @property
    def latent(self) -> LatentShape:
        """Return the shape of one image's latents."""
        channels, height, width = self.shape
        return LatentShape(channels, height, width)

    @classmethod
    def read(cls, path: Path) -> "LatentsInfo":
        """Read `latents.json`.

        Raises:
            ValueError: the file is missing, damaged, or another.
        """
        content = seal.read_json(path)
        try:
            return cls.model_validate(content)
        except ValueError as error:
            raise ValueError(f"{path} does not describe a latent cache: {error}") from None

    def write(self, path: Path) -> None:
        """Write `latents.json`."""
        seal.write_json(path, self.model_dump())

    def check(self, expected: Mapping[str, object]) -> None:
        """Refuse a cache that was not made as expected.

        Raises:
            ValueError: the message names what differs, what was found and what was expected.
        """
        differing = [
            f"{name} is {getattr(self, name)!r}, expected {value!r}"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
        if differing:
            raise ValueError("the latent cache does not fit: " + "; ".join(differing))
