"""Perceptual distances that the training of a tokenizer can minimise.

LPIPS, or the features of a classifier that is trained on the user's own images, for images unlike
LPIPS' photographs and where its weights cannot be downloaded.

Shapes: B batch, H W an image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Discriminator, Field, Tag
from torch import Tensor, nn

from mar.config import Config, kind
from mar.evaluation import lpips
from mar.evaluation.classifier import Classifier, ClassifierConfig
from mar.evaluation.lpips import LPIPS, LPIPSConfig, feature_difference


KEY = "tokenizer_training.perceptual"


class ClassifierDistanceConfig(Config):
    """The features of a classifier, trained for this alone, as a loss."""

    kind: Literal["classifier"]
    weight: float = Field(
        gt=0,
        description="weight of the distance, which is added to the error of each value of an image",
    )
    classifier: ClassifierConfig = Field(
        description="the network and its training; another network than that of section "
        "reference, which scores the result"
    )


PerceptualConfig = Annotated[
    Annotated[Literal["none"], Tag("none")]
    | Annotated[LPIPSConfig, Tag("lpips")]
    | Annotated[ClassifierDistanceConfig, Tag("classifier")],
    Discriminator(kind),
]


def one_class_warning(config: PerceptualConfig, num_classes: int) -> str | None:
    """Return a warning if the classifier would have nothing to learn, else nothing."""
    if num_classes > 1 or not isinstance(config, ClassifierDistanceConfig):
        return None
    return (
        f"{KEY}.kind: 'classifier' cannot be trained on images of a single class, so the distance "
        "is that of features of random weights; 'lpips' needs no classes, 'none' no network"
    )


class ClassifierDistance(nn.Module):
    """LPIPS without fitted weights, on the features of a classifier; a mean over its depths."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.requires_grad_(False).eval()

    def depths(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the features of images in [-1, 1], from full resolution down."""
        found: list[Tensor] = [self.classifier.stem(images)]
        for block in self.classifier.blocks:
            found.append(block(found[-1]))
        return found

    def forward(
        self, images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Return the distance of each pair of images in [-1, 1]; only the second has a gradient."""
        with torch.no_grad():
            expected = self.depths(images)
        pairs = zip(expected, self.depths(reconstructions), strict=True)
        distances = [
            feature_difference(first, second).sum(dim=1).mean(dim=(1, 2)) for first, second in pairs
        ]
        return torch.stack(distances).mean(dim=0)


Distance = LPIPS | ClassifierDistance


def load(
    config: PerceptualConfig,
    classifier: Callable[[ClassifierConfig], Classifier],
    *,
    base: Path = Path(),
) -> Distance | None:
    """Return the chosen distance, or None.

    Args:
        config: The choice.
        classifier: Trains a classifier; called only if one is chosen.
        base: The folder that a relative path of a weight file starts from.

    Raises:
        ValueError: the weights of LPIPS cannot be found; the message names alternatives.
    """
    match config:
        case "none":
            return None
        case LPIPSConfig():
            otherwise = f", or {KEY}: none, or {KEY}.kind: classifier, which need no download"
            return lpips.load(
                config.weights,
                config.weights_sha256,
                key=f"{KEY}.weights",
                otherwise=otherwise,
                base=base,
            )
        case ClassifierDistanceConfig():
            return ClassifierDistance(classifier(config.classifier))
