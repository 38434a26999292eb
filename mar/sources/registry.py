"""Which data sources there are: a file for each, and its name here."""

from typing import Annotated

from pydantic import Field

from mar.sources.captioned_folder import CaptionedFolderData
from mar.sources.digits import DigitsData
from mar.sources.folder import FolderData
from mar.sources.no_images import NoData
from mar.sources.parquet import ParquetData
from mar.sources.scenes import ScenesData
from mar.sources.webdataset import WebDatasetData


DataConfig = Annotated[
    DigitsData
    | ScenesData
    | FolderData
    | CaptionedFolderData
    | ParquetData
    | WebDatasetData
    | NoData,
    Field(discriminator="source"),
]
