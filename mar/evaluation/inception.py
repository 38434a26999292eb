"""The feature extractor `inception`: Inception v3 of 2015, which published FIDs use.

Shapes: B images, S their side in pixels, C H W an inner layer.
"""
# torch-fidelity has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import pickle
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, field_validator
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from mar.config import PathText, Sha256
from mar.evaluation.extractors import Extractor, ReferenceSection, StatisticsFile
from mar.evaluation.score_names import ScoreNames
from mar.files import downloads


NAME = "inception-v3-compat"  # TensorFlow's weights of 2015, among torch-fidelity's extractors
FILE = downloads.PublishedFile(URL_INCEPTION_V3, hash_prefix="6726825d")  # in its name
WIDTH = 2048  # features
SPATIAL_CHANNELS = 7  # which ADM takes, to have about as many numbers as features
SPATIAL_WIDTH = 17 * 17 * SPATIAL_CHANNELS  # 2023
SCORES = ScoreNames(
    fid="fid",
    kid="kid",
    mmd="mmd",
    precision="precision",
    recall="recall",
    rfid="rfid",
    sfid="sfid",
    inception_score="inception_score",
)


class InceptionReference(ReferenceSection):
    """Compare by the features of Inception v3, as published numbers do."""

    takes_statistics = True

    extractor: Literal["inception"] = Field(description="Inception v3 of 2015")
    weights: PathText | None = Field(
        description="torch-fidelity's weight file, absolute or relative to the repository; null "
        "uses an earlier download, or downloads it"
    )
    weights_sha256: Sha256 | None = Field(
        description="the file's SHA-256; null expects the published file"
    )
    statistics: PathText | None = Field(
        description="an .npz with mu, sigma and perhaps mu_s, sigma_s and images (arr_0), as ADM "
        "publishes them, or torch-fidelity's .pt, absolute or relative to the repository; null "
        "measures the split"
    )
    statistics_sha256: Sha256 | None = Field(description="the file's SHA-256; null skips the check")

    @field_validator("statistics")
    @classmethod
    def _check_one_source(cls, value: str | None, info: Any) -> str | None:
        if "split" in info.data and (value is None) == (info.data["split"] is None):
            raise ValueError(
                "must be a file, as reference.split is null"
                if value is None
                else "must be null, as reference.split says which images are compared with"
            )
        return value

    @property
    def statistics_file(self) -> StatisticsFile | None:
        """The published statistics to compare with, instead of those of a split."""
        if self.statistics is None:
            return None
        return StatisticsFile(self.statistics, self.statistics_sha256, WIDTH, SPATIAL_WIDTH)

    def load(self, folder: Path, *, base: Path = Path()) -> Extractor:
        """Return Inception with the weights of the file, which may be downloaded."""
        path = downloads.locate_checked(
            self.weights, self.weights_sha256, FILE, key="reference.weights", base=base
        )
        return Extractor("inception", _load(path).requires_grad_(False).eval(), SCORES)


class SpatialInception(FeatureExtractorInceptionV3):
    """Inception that returns what the ADM suite compares: features, logits, spatial features.

    Spatial features are the first 7 channels of the first convolution of the block mixed_6 (here
    Mixed_6d, 17 x 17 pixels), rows first and channels last: the sFID of ADM (Dhariwal and Nichol,
    2021, evaluations/evaluator.py; Nash et al., 2021, section 5).
    """

    def __init__(self, path: Path) -> None:
        super().__init__(NAME, ["2048", "logits_unbiased"], str(path))
        self._spatial = torch.empty(0)
        self.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def forward(self, x: UInt8[Tensor, "B 3 S S"]) -> tuple[Tensor, ...]:
        """Return features (B, 2048), logits without bias (B, 1008), spatial features (B, 2023)."""
        features, logits = super().forward(x)
        return features, logits, self._spatial

    def _keep(self, layer: object, inputs: object, output: Float[Tensor, "B C H W"]) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float()


def _load(path: Path) -> FeatureExtractorBase:
    """Load Inception, after checking that its file holds tensors only.

    torch-fidelity's own loader would execute code in a malicious file.
    """
    try:
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        return SpatialInception(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"reference.weights: {path} does not hold torch-fidelity's Inception weights: {reason}"
        ) from None
