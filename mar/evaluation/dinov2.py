"""The feature extractor `dinov2`, whose distances agree better with people's judgement."""
# torch-fidelity has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch_fidelity import FeatureExtractorBase, FeatureExtractorDinoV2

from mar.evaluation.extractors import Extractor, ReferenceSection, ScoreNames


SCORES = ScoreNames(
    fid="fd_dinov2",
    kid="kd_dinov2",
    precision="precision_dinov2",
    recall="recall_dinov2",
    rfid="rfd_dinov2",
)


class DinoReference(ReferenceSection):
    """Compare by the features of DINOv2, which agree better with people (Stein et al., 2023)."""

    extractor: Literal["dinov2"] = Field(description="DINOv2, downloaded by torch.hub")
    size: Literal["s", "b", "l", "g"] = Field(
        description="size of the network; FD-DINOv2 is measured with l"
    )

    def load(self, folder: Path, *, base: Path = Path()) -> Extractor:
        """Return DINOv2 from torch.hub, which downloads it if need be."""
        module = _load(f"dinov2-vit-{self.size}-14")
        return Extractor("dinov2", module.requires_grad_(False).eval(), SCORES)


def _load(name: str) -> FeatureExtractorBase:
    try:
        return FeatureExtractorDinoV2(name, ["dinov2"])
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"reference.extractor: torch.hub cannot download facebookresearch/dinov2 ({error}), "
            f"and there is no earlier download in {torch.hub.get_dir()}"
        ) from None
