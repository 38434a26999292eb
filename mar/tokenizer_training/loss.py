"""The reconstruction loss of a tokenizer (LDM, arXiv 2112.10752).

All terms are sums over an image, as in LDM, so its weights can be used unchanged.

Shapes: B batch, H W an image.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mar.tokenizer_training.perceptual import Distance, PerceptualConfig


class LearnedVariance(nn.Module):
    """One learned scale of the error of all values of all images, as in LDM."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(()))

    def forward(self, error: Float[Tensor, ""], *, values: int) -> Float[Tensor, ""]:
        """Return the negative log likelihood of an image, up to a constant.

        It is smallest where the variance equals the mean error of a value.
        """
        return error / self.log_variance.exp() + values * self.log_variance


@dataclass(frozen=True)
class ReconstructionLoss:
    """L1, a perceptual distance, and the variance of both.

    Attributes:
        perceptual: Which distance, and its weight.
        distance: The network of the distance, on the device; None if there is no such term, or no
            training.
        variance: The learned variance; None fixes it at 1.
    """

    perceptual: PerceptualConfig
    distance: Distance | None
    variance: LearnedVariance | None

    def __call__(
        self,
        images: Float[Tensor, "B 3 H W"],
        decoded: Float[Tensor, "B 3 H W"],
        *,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """Return the loss, a mean over images in float32, and its terms."""
        values = images[0].numel()
        l1 = (images - decoded).abs().flatten(1).sum(dim=1).mean()
        loss, terms = l1, {"l1": l1}
        if self.perceptual != "none":
            assert self.distance is not None
            with autocast():
                distances: Tensor = self.distance(images, decoded)
            # LDM adds the distance of two images to the error of each of their values.
            terms["perceptual"] = self.perceptual.weight * values * distances.mean()
            loss = loss + terms["perceptual"]
        if self.variance is not None:
            loss = self.variance(loss, values=values)
            log_variance = self.variance.log_variance.detach().clone()
            terms = {**terms, "nll": loss, "log_variance": log_variance}
        return loss, terms
