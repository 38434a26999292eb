"""The numbers of each stage that a pipeline is judged by, under names that stay the same.

A stage's numbers are named as MLflow has them: nested ones as `group/name`.
"""

import math
import re
from collections.abc import Mapping


# Stage, its number (a pattern, whole), and what it is called in the pipeline's run.
NAMES = [
    ("train_tokenizer", r"(loss|parameters)", r"tokenizer_\1"),
    ("train_tokenizer", r"l1_per_pixel", "tokenizer_l1"),
    ("train_tokenizer", r"held_out_psnr", "tokenizer_psnr"),
    ("reconstruct", r"(psnr|ssim|lpips|\w*rfid\w*)", r"\1"),
    ("train_generator", r"(loss|parameters)", r"generator_\1"),
    ("evaluate", r"samples/(\w+)(?<!_std)", r"\1"),
    (r"\w+", r"(seconds|images_per_second)", r"\1_{stage}"),
    (r"\w+", r"mean_(images_per_second)", r"\1_{stage}"),  # rather than the last point of a curve
]


SCORES = re.compile(r"(\w+_)?(s?fid|fd|kid|kd|mmd|is|inception_score|precision|recall)(_\w+)?")


def is_time(name: str) -> bool:
    """Whether a headline number tells how long something took."""
    return name.startswith(("seconds_", "images_per_second_"))


def is_score(name: str) -> bool:
    """Whether a headline number tells of the samples."""
    return SCORES.fullmatch(name) is not None


def select(stage: str, numbers: Mapping[str, object]) -> dict[str, float]:
    """Return a stage's headline numbers by their names; what is no number is left out."""
    found: dict[str, float] = {}
    for owner, pattern, name in NAMES:
        if re.fullmatch(owner, stage):
            for key, value in numbers.items():
                match = re.fullmatch(pattern, key)
                if match and isinstance(value, (int, float)) and math.isfinite(value):
                    found[match.expand(name).format(stage=stage)] = float(value)
    return found
