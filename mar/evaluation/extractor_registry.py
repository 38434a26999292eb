"""All feature extractors, one line each."""

from typing import Annotated

from pydantic import Field

from mar.evaluation.classifier_extractor import ClassifierReference
from mar.evaluation.dinov2 import DinoReference
from mar.evaluation.inception import InceptionReference


# Section `reference` of `params.yaml`.
ReferenceConfig = Annotated[
    ClassifierReference  # a small network, trained on the images at hand
    | InceptionReference  # Inception v3, as published numbers
    | DinoReference,  # DINOv2, downloaded by torch.hub
    Field(discriminator="extractor"),
]
