"""LPIPS (Zhang et al., arXiv 1801.03924), version 0.1 with VGG16: how different two images look.

The distance of the features of a network that was trained to recognise objects. The network is
torchvision's; the published weights of the features come with torchmetrics.

Shapes: B batch, H W an image, C channels of features, h w their resolution.
"""
# torchvision has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import pickle
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize
from torchvision.models import VGG16_Weights, vgg16

from mar import distributed
from mar.config import Config, PathText, Sha256
from mar.data.images import to_float
from mar.files import downloads


# After which layers of VGG16 features are compared: relu1_2, 2_2, 3_3, 4_3 and 5_3.
DEPTHS = (3, 8, 15, 22, 29)
SMALLEST = 16  # pixels: the deepest features are then 1 x 1
SHIFT = (-0.030, -0.088, -0.188)  # mean and deviation of ImageNet's colours, as LPIPS has them
SCALE = (0.458, 0.448, 0.450)
FILE = downloads.PublishedFile(
    VGG16_Weights.IMAGENET1K_V1.url, hash_prefix="397923af"
)  # in its name


class LPIPSConfig(Config):
    """LPIPS as a loss."""

    kind: Literal["lpips"]
    weight: float = Field(
        gt=0,
        description="weight of the distance, which is added to the error of each value of an image "
        "(LDM: 1)",
    )
    weights: PathText | None = Field(
        description="torchvision's VGG16 (vgg16-397923af.pth), absolute or relative to the "
        "repository; null uses an earlier download, or downloads it"
    )
    weights_sha256: Sha256 | None = Field(description="the file's SHA-256; null skips the check")


def feature_difference(
    first: Float[Tensor, "B C h w"], second: Float[Tensor, "B C h w"]
) -> Float[Tensor, "B C h w"]:
    """Return the squared difference of features, normalised at each position; in float32."""
    first, second = (normalize(features.float(), dim=1, eps=1e-10) for features in (first, second))
    return (first - second).square()


class LPIPS(nn.Module):
    """The distance of images; differentiable, so that training can minimise it."""

    shift: Tensor
    scale: Tensor

    def __init__(self, layers: nn.Sequential, channel_weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.layers = layers
        self.channel_weights = nn.ParameterList(channel_weights)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def depths(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """Return the features of images in [-1, 1] at five depths."""
        x = (images - self.shift) / self.scale
        found: list[Tensor] = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in DEPTHS:
                found.append(x)
        return found

    def forward(
        self, images: Float[Tensor, "B 3 H W"], reconstructions: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, " B"]:
        """Return the distance of each pair of images in [-1, 1]; only the second has a gradient."""
        with torch.no_grad():
            expected = self.depths(images)
        total = images.new_zeros(len(images))
        depths = zip(expected, self.depths(reconstructions), self.channel_weights, strict=True)
        for first, second, weight in depths:
            difference = feature_difference(first, second)  # (B, C, h, w)
            total = total + (weight[:, None, None] * difference).sum(dim=1).mean(dim=(1, 2))
        return total


class LPIPSScore:
    """Mean LPIPS of pairs of 8-bit images, on the device of the network."""

    def __init__(self, distance: LPIPS) -> None:
        self._distance = distance
        self._total = 0.0
        self._count = 0

    @torch.no_grad()
    def measure(
        self,
        originals: UInt8[Tensor, "B 3 H W"],
        reconstructions: UInt8[Tensor, "B 3 H W"],
        first: int,
    ) -> tuple[float, int]:
        """Return the sum of the distances of a batch, and how many they are."""
        device = next(self._distance.buffers()).device
        pair = (to_float(images.to(device)) for images in (originals, reconstructions))
        return float(self._distance(*pair).double().sum()), len(originals)

    def add(self, measured: tuple[float, int]) -> None:
        """Add the distances of a batch."""
        total, count = measured
        self._total += total
        self._count += count

    def compute(self) -> dict[str, float]:
        """Return `lpips`, or nothing if there were no pairs."""
        return {"lpips": self._total / self._count} if self._count else {}


def load(
    path: str | None,
    sha256: str | None,
    *,
    key: str,
    otherwise: str = "",
    base: Path = Path(),
) -> LPIPS:
    """Return LPIPS with the published weights, fixed, in evaluation mode.

    Args:
        path: torchvision's file of VGG16; None uses an earlier download, or downloads it.
        sha256: Its SHA-256; None skips the check.
        key: The key of `params.yaml` that gives the path; the digest's is `<key>_sha256`.
        otherwise: Alternatives that the message offers.
        base: The folder that a relative path starts from.

    Raises:
        ValueError: the file is missing or another one.
    """
    file = distributed.main_first(
        lambda: downloads.locate(path, sha256, FILE, key=key, otherwise=otherwise, base=base)
    )
    with torch.device("meta"):  # its weights are read, so none are drawn
        vgg = cast(nn.Sequential, vgg16(weights=None).features)
    layers = vgg[: DEPTHS[-1] + 1]
    names = {f"features.{name}": name for name in layers.state_dict()}
    try:
        tensors: dict[str, Tensor] = torch.load(file, weights_only=True, map_location="cpu")
        known = {names[name]: value.float() for name, value in tensors.items() if name in names}
        layers.load_state_dict(known, assign=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{key}: {file} does not hold torchvision's VGG16: {reason}") from None
    return LPIPS(layers, _channel_weights()).requires_grad_(False).eval()


def _channel_weights() -> list[Tensor]:
    """Read the weights of the features, LPIPS' linear layers: a file of 7 kB in torchmetrics."""
    file = files("torchmetrics") / "functional" / "image" / "lpips_models" / "vgg.pth"
    with as_file(file) as path:
        tensors: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return [tensors[f"lin{index}.model.1.weight"].flatten() for index in range(len(DEPTHS))]
