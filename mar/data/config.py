"""Section `data` of `params.yaml`: which images there are, and to what size they are cut.

In a file of its own because the stage that trains the generator reads the section, but makes
nothing of images: editing the code that lists and decodes them must not train it again.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from mar.config import Config, name_or_fields


class DigitsData(Config):
    """1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn."""

    source: Literal["digits"] = Field(description="the data set built in")
    image_size: int = Field(gt=0, description="side to which the images are scaled, in pixels")
    held_out_fraction: float = Field(gt=0, lt=1, description="share of each class not trained on")
    seed: int = Field(ge=0, description="chooses the images that are held out")


class FolderData(Config):
    """Images of any size in a folder with one folder per class, as ImageNet is distributed."""

    source: Literal["folder"] = Field(description="a folder of images")
    path: str = Field(min_length=1, description="the folder, absolute or from the repository")
    image_size: int = Field(gt=0, description="side of the square cut from each image, in pixels")
    held_out_fraction: float = Field(
        gt=0, lt=1, description="share of each class not trained on, unless there is a folder val"
    )
    max_unreadable: int = Field(
        ge=0, description="files that may be left out because they cannot be decoded"
    )
    seed: int = Field(ge=0, description="chooses the images that are held out")


class NoData(Config):
    """No images, only their classes: enough to generate with released weights."""

    source: Literal["none"] = Field(description="no images")
    image_size: int = Field(gt=0, description="side of the images to generate, in pixels")
    classes: Annotated[
        Annotated[Literal["imagenet"], Tag("name")]
        | Annotated[list[str], Field(min_length=1), Tag("fields")],
        Discriminator(name_or_fields),
    ] = Field(
        description="names of the classes, or ImageNet's 1,000 in the order of their WordNet ids"
    )


DataConfig = Annotated[DigitsData | FolderData | NoData, Field(discriminator="source")]
