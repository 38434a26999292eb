"""The feature extractor `dinov2`, whose distances agree better with people's judgement.

torch.hub would run whatever code the repository of DINOv2 holds that day. Here timm's network reads
the authors' file of weights instead, whose digest is compared.

Shapes: B images, S their side in pixels, N patches of the image, D width.
"""
# torch-fidelity and timm have few types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
import pickle
from pathlib import Path
from typing import Literal

import timm
import torch
from jaxtyping import Float
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor
from torch.nn import functional
from torch_fidelity import FeatureExtractorBase, FeatureExtractorDinoV2

from mar.config import PathText, Sha256
from mar.evaluation.extractors import Extractor, ReferenceSection
from mar.evaluation.score_names import ScoreNames
from mar.files import downloads


SCORES = ScoreNames(
    fid="fd_dinov2",
    kid="kd_dinov2",
    mmd="mmd_dinov2",
    precision="precision_dinov2",
    recall="recall_dinov2",
    rfid="rfd_dinov2",
)
PATCH = 14  # pixels
NAMES = {"s": "small", "b": "base", "l": "large", "g": "giant"}  # timm's
DIGESTS = {  # the beginning of the SHA-256 of each file
    "s": "b938bf1bc15cd2ec",
    "b": "0b8b82f85de91b42",
    "l": "d5383ea8f4877b24",
    "g": "baf8467e50af2775",
}


class DinoReference(ReferenceSection):
    """Compare by the features of DINOv2, which agree better with people (Stein et al., 2023)."""

    extractor: Literal["dinov2"] = Field(description="DINOv2 without registers")
    size: Literal["s", "b", "l", "g"] = Field(
        description="size of the network; FD-DINOv2 is measured with l"
    )
    weights: PathText | None = Field(
        description="the authors' weight file, absolute or relative to the repository; null uses "
        "an earlier download, or downloads it"
    )
    weights_sha256: Sha256 | None = Field(
        description="the file's SHA-256; null expects the published file"
    )

    @property
    def file(self) -> downloads.PublishedFile:
        """The published weights of the chosen size."""
        name = f"dinov2_vit{self.size}14"
        url = f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth"
        return downloads.PublishedFile(url, hash_prefix=DIGESTS[self.size])

    def load(self, folder: Path, *, base: Path = Path()) -> Extractor:
        """Return DINOv2 with the weights of the file, which may be downloaded."""
        path = downloads.locate_checked(
            self.weights, self.weights_sha256, self.file, key="reference.weights", base=base
        )
        module = DinoV2(self.size)
        try:
            module.read(path)
        except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"reference.weights: {path} does not hold DINOv2's weights of size {self.size}: "
                f"{reason}"
            ) from None
        return Extractor("dinov2", module.requires_grad_(False).eval(), SCORES)


class DinoV2(FeatureExtractorDinoV2):
    """DINOv2 behind torch-fidelity's interface, which resizes images to 224 pixels and normalises
    their colours; features (B, D) are those of the class token.
    """

    def __init__(self, size: str) -> None:
        # That of the base class alone: torch-fidelity's own asks torch.hub.
        FeatureExtractorBase.__init__(self, f"dinov2-vit-{size}-{PATCH}", ["dinov2"])
        self.feature_extractor_internal_dtype = torch.float32
        self.model = timm.create_model(
            f"vit_{NAMES[size]}_patch{PATCH}_dinov2",
            pretrained=False,
            img_size=self.INPUT_IMAGE_SIZE,
            num_classes=0,
        )

    def read(self, path: Path) -> None:
        """Read the authors' weights.

        Raises:
            pickle.UnpicklingError: the file holds something else than tensors.
            RuntimeError: they are not of this network, or the file is damaged.
        """
        weights = torch.load(path, weights_only=True, map_location="cpu")
        tokens = self.INPUT_IMAGE_SIZE // PATCH
        weights["pos_embed"] = resize_positions(weights["pos_embed"], tokens)
        assert isinstance(self.model, VisionTransformer)
        self.model.load_state_dict(checkpoint_filter_fn(weights, self.model))


def resize_positions(embedding: Float[Tensor, "1 L D"], side: int) -> Float[Tensor, "1 K D"]:
    """Return the positions of a class token and side * side patches.

    DINOv2 was trained at 518 pixels (37 * 37 patches), and interpolates bicubically by the factor
    (side + 0.1) / 37, which timm does not; features differ by it, so it is kept here.
    """
    patches = embedding[:, 1:]
    trained = math.isqrt(patches.shape[1])
    square = patches.reshape(1, trained, trained, -1).permute(0, 3, 1, 2)  # (1, D, 37, 37)
    factor = (side + 0.1) / trained
    resized = functional.interpolate(square, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([embedding[:, :1], resized.flatten(2).mT], dim=1)
