"""Score generated scenes by what they show, where the data are scenes with captions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mar.data.dataset import ImageSet
from mar.data.manifest import Manifest
from mar.evaluation.extractors import Images
from mar.evaluation.scene_detector import learn_digits
from mar.evaluation.scene_prompts import read_prompt
from mar.evaluation.scene_scores import bounds, score_scenes
from mar.scenes.digits import split_digits
from stages.share_rows import percent, task_rows
from stages.tables import Table


NOTE = (
    "The share of generated scenes that show what their prompt asks for, by GenEval's rules; "
    "places and colours are told by the pixels, digits by a small classifier. In brackets, what "
    "real scenes reach that were held out: with the captions of other scenes, and with their own. "
    "Prompts with a colour are shown apart by whether any training scene has their digit in that "
    "colour; the number is that of images."
)
PAIRS = {"seen": "pairs of digit and colour seen", "unseen": "pairs never seen"}


def find(
    source: str, manifest: Path, prompts: Sequence[str] | None, images: Images
) -> dict[str, Any]:
    """Return the scores of scenes as `scenes`; nothing of other data, or where no prompt fits."""
    if source != "scenes" or prompts is None or not any(map(read_prompt, prompts)):
        return {}
    training, _ = split_digits()
    classifier = learn_digits(training)
    real = ImageSet(manifest, "held_out", images.image_size)
    captions = [texts[0] for texts in Manifest(manifest, "held_out").captions() or []]
    return {
        "scenes": {
            **score_scenes(classifier, images.stack(list(range(len(images)))), prompts),
            **bounds(classifier, real.stack(list(range(len(real)))), captions),
        }
    }


def warning(source: str, prompts: Sequence[str] | None, found: Mapping[str, Any]) -> str | None:
    """Say that prompts are not judged, if some are not."""
    if source != "scenes" or prompts is None:
        return None
    count = found["scenes"]["num_not_understood"] if found else len(prompts)
    if not count:
        return None
    return f"{count} of {len(prompts)} prompts are no captions of scenes, so these are not judged"


def table(scores: Mapping[str, Any]) -> Table:
    """Return the scores for the report."""
    low, high = scores["floor"], scores["ceiling"]
    rows = [
        (name, f"{value}{_between(low['tasks'].get(key), high['tasks'].get(key))}")
        for key, (name, value) in zip(scores["tasks"], task_rows(scores), strict=True)
    ]
    rows += [
        (name, f"{percent(scores, name)}{_between(low[name], high[name])}")
        for name in ("overall", "strict")
    ]
    rows += [
        (f"{task.replace('_', ' ')}, {described}", f"{percent(found, 'share')} of {found['num']}")
        for task in scores["tasks"]
        for name, described in PAIRS.items()
        if (found := scores.get(name, {}).get(task))
    ]
    return Table("What scenes show", rows, NOTE)


def _between(low: float | None, high: float | None) -> str:
    """Return the bounds of a score; the held-out scenes may lack a task of the prompts."""
    return "" if low is None or high is None else f" ({low:.1%} to {high:.1%})"
