"""The feature extractor `inception`: Inception v3 of 2015, which published FIDs use."""
# torch-fidelity has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import pickle
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch_fidelity import FeatureExtractorBase, FeatureExtractorInceptionV3
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from mar.config import PathText, Sha256
from mar.evaluation.extractors import Extractor, ReferenceSection, ScoreNames, StatisticsFile
from mar.files import downloads


NAME = "inception-v3-compat"  # TensorFlow's weights of 2015, among torch-fidelity's extractors
FILE = downloads.PublishedFile(URL_INCEPTION_V3, hash_prefix="6726825d")  # in its name
WIDTH = 2048  # features
SCORES = ScoreNames(
    fid="fid",
    kid="kid",
    precision="precision",
    recall="recall",
    rfid="rfid",
    inception_score="inception_score",
    inception_score_std="inception_score_std",
)


class InceptionReference(ReferenceSection):
    """Compare by the features of Inception v3, as published numbers do."""

    has_inception_score = True

    extractor: Literal["inception"] = Field(description="Inception v3 of 2015")
    weights: PathText | None = Field(
        description="torch-fidelity's weight file, absolute or relative to the repository; null "
        "uses an earlier download, or downloads it"
    )
    weights_sha256: Sha256 | None = Field(description="the file's SHA-256; null skips the check")
    statistics: PathText | None = Field(
        description="an .npz with mu, sigma and perhaps images (arr_0), as ADM publishes them, "
        "absolute or relative to the repository; null measures the training split"
    )
    statistics_sha256: Sha256 | None = Field(description="the file's SHA-256; null skips the check")

    @property
    def statistics_file(self) -> StatisticsFile | None:
        """The published statistics to compare with, instead of the training split's."""
        if self.statistics is None:
            return None
        return StatisticsFile(self.statistics, self.statistics_sha256, WIDTH)

    def load(self, folder: Path, *, base: Path = Path()) -> Extractor:
        """Return Inception with the weights of the file, which may be downloaded."""
        path = downloads.locate(
            self.weights, self.weights_sha256, FILE, key="reference.weights", base=base
        )
        return Extractor("inception", _load(path).requires_grad_(False).eval(), SCORES)


def _load(path: Path) -> FeatureExtractorBase:
    """Load Inception, after checking that its file holds tensors only.

    torch-fidelity's own loader would execute code in a malicious file.
    """
    try:
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        return FeatureExtractorInceptionV3(NAME, ["2048", "logits_unbiased"], str(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"reference.weights: {path} does not hold torch-fidelity's Inception weights: {reason}"
        ) from None
