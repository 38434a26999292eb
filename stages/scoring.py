"""Score generated images of a program that is no stage, and say how far the scores can be trusted.

Shapes: B images, S their side in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from mar.evaluation import extractors
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.extractors import Features, ReferenceSection
from mar.evaluation.metrics import class_warning, score
from mar.evaluation.real_images import RealImages
from mar.evaluation.reference import INFO, ReferenceInfo
from mar.evaluation.score_config import EvaluateConfig
from stages import params, presets, prompt_scores, scene_scores
from stages.prompt_scores import Asked, Scorers
from stages.stage import OUT, root


FOLDER = OUT / "reference"
MANIFEST = OUT / "prepare" / "manifest.parquet"
KINDS = {"untrained": "classifier"}  # extractors that have no section of their own name
# For a reference that section `reference` of params.yaml does not describe: a preset that has one.
PRESETS = {"classifier": "digits", "inception": "imagenet256-mar-b"}


@dataclass(frozen=True)
class TensorImages:
    """Images in memory, as extractors read them."""

    pixels: UInt8[Tensor, "B 3 S S"]

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.pixels.shape[2]

    def __len__(self) -> int:
        return len(self.pixels)

    def stack(self, indices: list[int]) -> UInt8[Tensor, "B 3 S S"]:
        """Return some of the images as one tensor."""
        return self.pixels[indices].contiguous()  # convolutions round otherwise by layout


@dataclass(frozen=True)
class Scorer:
    """Scores images as the stage `evaluate` does.

    Attributes:
        real: The real images that they are compared with.
        config: The settings; those that are larger than a set of images are lowered to its size.
        class_names: Of all classes that the generator knows.
        asked: The prompts of the images, if they are of prompts.
        by_prompts: What scores images by them.
    """

    real: RealImages
    config: EvaluateConfig
    class_names: Sequence[str]
    asked: Asked | None = None
    by_prompts: Scorers = field(default_factory=dict[str, Any])

    def with_prompts(self, asked: Asked, device: torch.device) -> "Scorer":
        """Return one that also scores images of prompts as section `evaluate` says.

        Without lines of GenEval's file, `evaluate.geneval` is left out.

        Raises:
            ValueError: a model is not what it must be, or a line asks for what none of them knows.
        """
        config = self.config
        if asked.geneval is None:
            config = config.model_copy(update={"geneval": None})
        scorers = prompt_scores.open_scorers(config, asked, device, base=root())
        return replace(self, asked=asked, by_prompts=scorers)

    @classmethod
    def open(
        cls, folder: Path, image_size: int, class_names: Sequence[str], preset: str | None
    ) -> "Scorer":
        """Open what the stage `reference` wrote.

        Args:
            folder: Where it wrote: `out/reference` of this or another copy of the project.
            image_size: The side of the images to score, in pixels.
            class_names: Of all classes that the generator knows.
            preset: Whose section `evaluate` holds; None is that of params.yaml.

        Raises:
            ValueError: there is no reference, or it is of another size or other classes.
        """
        inner = folder / "extractor"
        if not (inner / INFO).is_file():
            raise ValueError(
                f"{inner / INFO} is missing; `dvc repro reference` makes it, or give --reference, "
                "the folder out/reference of a run on the same data"
            )
        kind = ReferenceInfo.read(inner / INFO).extractor
        section = _section(KINDS.get(kind, kind))
        size = {"height": image_size, "width": image_size}
        real = RealImages.load(inner, section, base=root(), **size)
        if preset is None:
            config = params.load("evaluate", EvaluateConfig)
        else:
            config = _preset_section(preset, "evaluate", EvaluateConfig)
        return cls(real, config, class_names)

    def score(
        self, images: UInt8[Tensor, "B 3 S S"], labels: Int[Tensor, " B"], device: torch.device
    ) -> tuple[dict[str, Any], list[str]]:
        """Return what `evaluate` reports of its samples with the settings used, and warnings.

        Args:
            images: At least two.
            labels: Their classes.
            device: Where the extractor works.

        Raises:
            ValueError: the real images have other classes than the generator.
        """
        extractor, pixels = self.real.extractor, TensorImages(images)
        batches = extractors.extract(extractor, pixels, name="pictures", device=device, workers=0)
        found = extractors.gather(batches, len(images))
        self._check_classes(found)
        fitted, warnings = self.real.fit(self.config, "images", len(images))
        if warning := class_warning(labels, len(self.class_names), self.real.info.class_counts):
            warnings.append(warning)
        names, reference = extractor.names, self.real.reference
        scores = score(found, labels, reference, names=names, config=fitted)
        report = self.real.report(scores, len(images)) | {"evaluate": fitted.model_dump()}
        if self.asked is not None:
            shown, unjudged = self._score_by_prompts(self.asked, pixels)
            report |= shown
            warnings += unjudged
        return report, warnings

    def _score_by_prompts(
        self, asked: Asked, pixels: TensorImages
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the scores by prompts, those of scenes among them, and warnings."""
        source = params.load("data.source", str) if MANIFEST.is_file() else ""
        scenes = scene_scores.find(source, MANIFEST, asked.prompts, pixels)
        warnings = [scene_scores.warning(source, asked.prompts, scenes)]
        if self.config.geneval is not None and asked.geneval is None:
            warnings.append("prompts are not all of a file of GenEval (NAME.jsonl), so evaluate."
                            "geneval is left out")  # fmt: skip
        found = scenes | prompt_scores.find(self.by_prompts, pixels)
        return found, [warning for warning in warnings if warning is not None]

    def _check_classes(self, found: Features) -> None:
        if self.real.extractor.names.accuracy is None or found.logits is None:
            return
        if (known := found.logits.shape[1]) != len(self.class_names):
            raise ValueError(
                f"the real images have {known} classes, the generator {len(self.class_names)}"
            )


def _section(kind: str) -> ReferenceSection:
    """Return section `reference` of params.yaml, or of a preset if it is of another extractor."""
    found = params.find(params.read(), "reference") if params.FILE.is_file() else None
    if isinstance(found, dict) and found.get("extractor") == kind:
        return params.parse("reference", found, ReferenceConfig)
    if kind not in PRESETS:
        raise ValueError(
            f"--reference was measured with the extractor {kind!r}, "
            "and section reference of params.yaml describes another one"
        )
    return _preset_section(PRESETS[kind], "reference", ReferenceConfig)


def _preset_section(preset: str, section: str, kind: Any) -> Any:
    content = params.parse_yaml(presets.resolve(preset))
    return params.parse(section, content[section], kind, Path(f"the preset {preset}"))
