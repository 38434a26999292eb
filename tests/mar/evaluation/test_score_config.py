"""Settings that need more images than there are become smaller, and that is said."""

import pytest
from pydantic import ValidationError
from score_configs import CONFIG

from mar.evaluation.score_config import EvaluateConfig, fit_sizes, fit_warnings


def test_settings_that_need_more_images_are_lowered_and_said() -> None:
    config = CONFIG.model_copy(update={"is_splits": 61, "kid_subset_size": 100, "neighbours": 60})
    fitted = fit_sizes(config, 60, 500)
    assert (fitted.is_splits, fitted.kid_subset_size, fitted.neighbours) == (60, 30, 59)
    assert fit_sizes(config, 500, 70).kid_subset_size == 35
    assert fit_sizes(config, 3, 70).kid_subset_size == 2
    assert fit_warnings("samples", config, fitted) == [
        "for want of samples, evaluate has is_splits 60 (not 61), kid_subset_size 30 (not 100), "
        "neighbours 59 (not 60)"
    ]


@pytest.mark.parametrize("num_features", [0, 40])
def test_settings_that_just_fit_stay(num_features: int) -> None:
    assert fit_sizes(CONFIG, 40, num_features) == CONFIG
    assert fit_warnings("samples", CONFIG, CONFIG) == []


@pytest.mark.parametrize("key", ["bootstrap", "infinity_points"])
def test_one_resample_or_subset_has_no_spread_and_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){key}.*must be 0, or 2 or more"):
        EvaluateConfig.model_validate({**CONFIG.model_dump(), key: 1})
