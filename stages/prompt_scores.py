"""Score photographs by their prompts: GenEval and CLIPScore, by models in local folders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm import tqdm

from mar.evaluation.clip import Clip, ClipScorer
from mar.evaluation.detectors.colors import ColorNamer
from mar.evaluation.detectors.mask2former import Mask2Former
from mar.evaluation.extractors import Images
from mar.evaluation.photo_scores import PhotoJudge, check_classes
from mar.evaluation.score_config import EvaluateConfig, GenEvalConfig
from mar.scenes.wanted import Prompt
from stages.share_rows import percent, task_rows
from stages.tables import PLUS_MINUS, Table


JUDGED, COMPARED = 4, 64  # images at a time; Mask2Former takes 0.75 GB for each
NOTES = {
    "geneval": "The share of images that show what their prompt asks for, by GenEval's rules; "
    "objects were found by {detector}, colours told by {clip} (SHA-256 {detector_sha256:.12} and "
    "{clip_sha256:.12}). Scores by other models differ.",
    "clip_score": "100 max(cos, 0) of an image and its prompt, the mean over images, by {model} "
    "(SHA-256 {model_sha256:.12}).",
}


class Asked(Protocol):
    """What images were asked for, as `SampleSet` has it."""

    @property
    def prompts(self) -> Sequence[str] | None:
        """The prompt of each image; None for images of classes."""
        ...

    @property
    def geneval(self) -> Sequence[str] | None:
        """The line of GenEval's file that each prompt is from; None if they are from none."""
        ...


@dataclass(frozen=True)
class GenEvalScorer:
    """Scores samples by GenEval.

    Attributes:
        detector: Finds objects.
        clip: Tells their colours.
        prompts: Of each sample.
    """

    detector: Mask2Former
    clip: Clip
    prompts: Sequence[Prompt]

    @classmethod
    def open(
        cls, config: GenEvalConfig, asked: Asked, device: torch.device, base: Path
    ) -> "GenEvalScorer":
        """Read the prompts and the models.

        Raises:
            ValueError: a folder is not what it must be, or the samples have no such prompts.
        """
        key = "evaluate.geneval"
        if asked.geneval is None:
            raise ValueError(
                f"{key}: the samples are not of GenEval's prompts (sample.prompts: NAME.jsonl)"
            )
        try:
            parsed = {line: Prompt.read(line) for line in dict.fromkeys(asked.geneval)}
            check_classes(parsed.values())
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
        clip = Clip(_place(base, config.clip), device, key=f"{key}.clip")
        detector = Mask2Former(_place(base, config.detector), device, key=f"{key}.detector")
        return cls(detector, clip, [parsed[line] for line in asked.geneval])

    def score(self, samples: Images) -> dict[str, Any]:
        """Return the scores, and which models found them."""
        judge = PhotoJudge(self.detector, ColorNamer(self.clip))
        for part, images in _batches(samples, "GenEval", JUDGED):
            judge.update(images, [self.prompts[index] for index in part])
        models = {
            **{"detector": self.detector.name, "detector_sha256": self.detector.sha256},
            **{"clip": self.clip.name, "clip_sha256": self.clip.sha256},
        }
        return {**judge.compute().report(), **models, "num_judged": len(samples)}


@dataclass(frozen=True)
class ClipScoreScorer:
    """Scores samples by CLIPScore.

    Attributes:
        clip: The model.
        prompts: Of each sample.
    """

    clip: Clip
    prompts: Sequence[str]

    @classmethod
    def open(cls, folder: Path, asked: Asked, device: torch.device) -> "ClipScoreScorer":
        """Read the model.

        Raises:
            ValueError: the folder is not what it must be, or the samples have no prompts.
        """
        key = "evaluate.clip_score"
        if asked.prompts is None:
            raise ValueError(f"{key}: the samples are not of prompts (section text)")
        return cls(Clip(folder, device, key=key), asked.prompts)

    def score(self, samples: Images) -> dict[str, Any]:
        """Return the score, and which model found it."""
        scorer = ClipScorer(self.clip, self.prompts)
        for part, images in _batches(samples, "CLIPScore", COMPARED):
            scorer.update(images, [self.prompts[index] for index in part])
        found = scorer.compute()
        spread = {} if found.error is None else {"value_std": found.error}
        model = {"model": self.clip.name, "model_sha256": self.clip.sha256}
        return {"value": found.value, **spread, "num_cut": found.num_cut, **model}


Scorers = Mapping[str, GenEvalScorer | ClipScoreScorer]  # by the names of their scores


def open_scorers(
    config: EvaluateConfig, asked: Asked, device: torch.device, *, base: Path
) -> Scorers:
    """Read the models that section `evaluate` asks for, and compare them with the prompts.

    Args:
        config: Section `evaluate`.
        asked: The prompts of the images.
        device: Where the models work.
        base: Where their paths begin, if they are relative.

    Raises:
        ValueError: a folder is not what it must be, or the samples have no such prompts.
    """
    opened: dict[str, GenEvalScorer | ClipScoreScorer] = {}
    if config.geneval is not None:
        opened["geneval"] = GenEvalScorer.open(config.geneval, asked, device, base)
    if config.clip_score is not None:
        folder = _place(base, config.clip_score)
        opened["clip_score"] = ClipScoreScorer.open(folder, asked, device)
    return opened


def find(scorers: Scorers, samples: Images) -> dict[str, Any]:
    """Return the scores as `geneval` and `clip_score`."""
    return {name: scorer.score(samples) for name, scorer in scorers.items()}


def tables(values: Mapping[str, Any]) -> Iterator[Table]:
    """Yield the scores for the report."""
    if "geneval" in values:
        scores = values["geneval"]
        rows = [*task_rows(scores)]
        rows += [(name, percent(scores, name)) for name in ("overall", "strict")]
        yield Table("GenEval", rows, NOTES["geneval"].format(**scores))
    if "clip_score" in values:
        score = values["clip_score"]
        spread = f" {PLUS_MINUS} {score['value_std']:.2f}" if "value_std" in score else ""
        rows = [("CLIPScore", f"{score['value']:.2f}{spread}"),
                ("prompts longer than the model reads", str(score["num_cut"]))]  # fmt: skip
        yield Table("CLIPScore", rows, NOTES["clip_score"].format(**score))


def _place(base: Path, folder: str) -> Path:
    return base / Path(folder).expanduser()


def _batches(samples: Images, name: str, size: int) -> Iterator[tuple[range, torch.Tensor]]:
    """Yield the numbers of some images, and the images."""
    with tqdm(total=len(samples), desc=name, unit="image") as progress:
        for start in range(0, len(samples), size):
            part = range(start, min(start + size, len(samples)))
            yield part, samples.stack(list(part))
            progress.update(len(part))
