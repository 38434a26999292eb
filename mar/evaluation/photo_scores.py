"""GenEval of photographs: objects by Mask2Former, colours by CLIP, then the published rules.

Shapes: B images, S side of an image.
"""

import difflib
from collections.abc import Iterable, Sequence

from jaxtyping import UInt8
from torch import Tensor

from mar.evaluation.detectors.colors import ColorNamer
from mar.evaluation.detectors.mask2former import CLASSES, Mask2Former, Segment
from mar.evaluation.geneval import Detection, Scores, Verdict, judge, score
from mar.scenes.wanted import Prompt


class PhotoJudge:
    """Judges photographs by their prompts, a batch at a time."""

    def __init__(self, detector: Mask2Former, colors: ColorNamer) -> None:
        self._detector, self._colors = detector, colors
        self._judged: list[tuple[Prompt, Verdict]] = []

    def update(self, images: UInt8[Tensor, "B 3 S S"], prompts: Sequence[Prompt]) -> None:
        """Judge images, each by its prompt."""
        for image, found, prompt in zip(
            images, self._detector.detect(images), prompts, strict=True
        ):
            self._judged.append((prompt, judge(prompt, self._by_class(image, found, prompt))))

    def compute(self) -> Scores:
        """Return the scores of all images."""
        return score(self._judged)

    def _by_class(
        self, image: UInt8[Tensor, "3 S S"], found: Sequence[Segment], prompt: Prompt
    ) -> dict[str, list[Detection]]:
        """Return the objects of an image by class, with the colours that the rules look at."""
        by_class: dict[str, list[Detection]] = {}
        for name in dict.fromkeys(each.class_name for each in found):
            objects = [each for each in found if each.class_name == name]
            count = max(
                (w.count for w in prompt.include if w.class_name == name and w.color), default=0
            )
            colors = self._colors.name(image, objects[:count])  # of the surest alone
            by_class[name] = [
                each.detection._replace(color=color)
                for each, color in zip(
                    objects, [*colors, *(None for _ in objects[count:])], strict=True
                )
            ]
        return by_class


def check_classes(prompts: Iterable[Prompt]) -> None:
    """Refuse prompts for what the detector does not know.

    Raises:
        ValueError: an object is none of COCO's classes as GenEval calls them.
    """
    for prompt in prompts:
        for wanted in (*prompt.include, *prompt.exclude):
            if wanted.class_name not in CLASSES:
                close = [name for name in CLASSES if wanted.class_name in name.split()]
                close += difflib.get_close_matches(wanted.class_name, CLASSES, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(
                    f"{wanted.class_name!r} of the prompt {prompt.text!r} is none of the "
                    f"{len(CLASSES)} classes of COCO as GenEval calls them{hint}"
                )
