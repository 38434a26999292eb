"""The data source `none`: classes without images."""

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from mar.config import name_or_fields
from mar.data.manifest import Rows
from mar.sources.source import Collection, DataSource, Surroundings


class NoData(DataSource):
    """No images, only their classes: enough to generate with released weights."""

    has_images: ClassVar[bool] = False

    source: Literal["none"] = Field(description="no images")
    image_size: int = Field(
        gt=0, le=16_384, description="side of the images to generate, in pixels"
    )
    classes: Annotated[
        Annotated[Literal["imagenet"], Tag("name")]
        | Annotated[list[str], Field(min_length=1), Tag("fields")],
        Discriminator(name_or_fields),
    ] = Field(
        description="names of the classes, or ImageNet's 1,000 in the order of their WordNet ids"
    )

    def collect(self, surroundings: Surroundings) -> Collection:
        """Return the names of the classes."""
        if self.classes != "imagenet":
            return Collection(self.classes, Rows.collect([]))
        # Here, as it takes seconds to import. Its classes are sorted by their WordNet ids.
        from torchvision.models import ResNet50_Weights  # pyright: ignore[reportMissingTypeStubs]

        names: list[str] = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
        return Collection(names, Rows.collect([]))
