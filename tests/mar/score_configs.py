"""Section `evaluate` for features of few images, without prompts."""

from mar.evaluation.score_config import EvaluateConfig


CONFIG = EvaluateConfig(
    is_splits=2,
    is_shuffle=True,
    kid_subsets=5,
    kid_subset_size=40,
    neighbours=3,
    bootstrap=0,
    infinity_points=0,
    seed=7,
    geneval=None,
    clip_score=None,
)
