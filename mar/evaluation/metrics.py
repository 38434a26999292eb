"""Scores of images against real ones: Frechet distance, Inception score, KID, precision and recall.

torch-fidelity computes them from the features of any extractor. Only with Inception's features do
they have their well-known names.

Shapes: B images, K classes, F features.
"""
# torch-fidelity has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import torch
from jaxtyping import Float32, Int
from pydantic import Field
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from mar.config import Config
from mar.evaluation.extractors import Features, ScoreNames
from mar.evaluation.reference import Moments, Reference, Statistics


ROWS = 2000  # of distances in memory at a time
# Images for each feature, below which a Frechet distance is much too large. The authors of the FID
# advise at least 10,000 images for Inception's 2,048 features (github.com/bioinf-jku/TTUR).
PER_FEATURE = 5


class EvaluateConfig(Config):
    """Section `evaluate` of `params.yaml`: how features are compared."""

    is_splits: int = Field(
        ge=1, description="parts whose Inception scores are averaged; published ones use 10"
    )
    kid_subsets: int = Field(
        ge=1, le=100_000, description="random subsets whose kernel distances are averaged"
    )
    kid_subset_size: int = Field(ge=2, description="images in each subset")
    neighbours: int = Field(
        ge=1,
        description="k of precision and recall: the manifold around an image reaches to its k-th "
        "neighbour (usually 3)",
    )
    seed: int = Field(ge=0, lt=2**32, description="chooses the splits and subsets")


def check_sizes(
    config: EvaluateConfig,
    name: str,
    num_images: int,
    *,
    num_features: int,
    inception_score: bool,
) -> None:
    """Check before any work that there are as many images as the settings need.

    Args:
        config: The settings.
        name: What the images are called.
        num_images: How many are to be scored.
        num_features: How many real images they are compared with in KID, precision and recall; 0
            where these are not computed.
        inception_score: Whether the extractor gives one.

    Raises:
        ValueError: a setting is larger than a set of images.
    """
    limits: list[tuple[str, int, int, str]] = []
    if inception_score:
        limits.append(("is_splits", config.is_splits, num_images, name))
    if num_features:
        fewest = min(
            (num_images, name), (num_features, "real images kept (reference.num_features)")
        )
        limits += [
            ("kid_subset_size", config.kid_subset_size, *fewest),
            ("neighbours", config.neighbours, fewest[0] - 1, f"{fewest[1]} minus one"),
        ]
    for key, value, most, what in limits:
        if value > most:
            raise ValueError(
                f"evaluate.{key}: must be at most {most}, the number of {what}, got {value}"
            )


def fit_sizes(config: EvaluateConfig, num_images: int, num_features: int) -> EvaluateConfig:
    """Return the settings, those that are larger than the set of images lowered to its size.

    Args:
        config: The settings.
        num_images: How many images are to be scored; at least two.
        num_features: How many real images they are compared with in KID, precision and recall; 0
            where these are not computed.
    """
    fewest = min(num_images, num_features) if num_features else num_images
    return config.model_copy(
        update={
            "is_splits": min(config.is_splits, num_images),
            "kid_subset_size": min(config.kid_subset_size, fewest),
            "neighbours": min(config.neighbours, fewest - 1),
        }
    )


def sample_count_warning(name: str, count: int, width: int) -> str | None:
    """Return a warning if a Frechet distance is of too few images for its features, else None.

    Args:
        name: What the distance is called.
        count: How many images it is of.
        width: How many features an image has.
    """
    if count >= PER_FEATURE * width:
        return None
    return (
        f"{name} is too large, as {count} images are too few for the covariance of {width} "
        "features; compare it only with that of as many images"
    )


def score(
    found: Features,
    labels: Int[Tensor, " B"],
    reference: Reference,
    *,
    names: ScoreNames,
    config: EvaluateConfig,
) -> dict[str, float]:
    """Return the scores of images by their names.

    KID, precision and recall need kept features of real images, the Inception score needs logits.
    The accuracy is the share of images whose label the extractor predicts.
    """
    scores = {KEY_METRIC_FID: frechet_distance(_measure(found.features), reference.statistics)}
    if names.inception_score is not None and found.logits is not None:
        scores |= isc_features_to_metric(found.logits, config.is_splits, rng_seed=config.seed)
        if config.is_splits == 1:
            del scores[KEY_METRIC_ISC_STD]  # one part has no spread
    if len(reference.features):
        scores |= kid_features_to_metric(
            found.features.double(),
            reference.features.double(),
            kid_subsets=config.kid_subsets,
            kid_subset_size=config.kid_subset_size,
            rng_seed=config.seed,
            verbose=False,
        )
        scores |= prc_features_to_metric(
            found.features,
            reference.features,
            prc_neighborhood=config.neighbours,
            prc_batch_size=ROWS,
            save_cpu_ram=True,
            verbose=False,
        )
    chosen = {
        KEY_METRIC_FID: names.fid,
        KEY_METRIC_ISC_MEAN: names.inception_score,
        KEY_METRIC_ISC_STD: names.inception_score_std,
        KEY_METRIC_KID_MEAN: names.kid,
        KEY_METRIC_PRECISION: names.precision,
        KEY_METRIC_RECALL: names.recall,
    }
    named = {name: float(scores[key]) for key, name in chosen.items() if name and key in scores}
    if names.accuracy is not None and found.logits is not None:
        named[names.accuracy] = classifier_accuracy(found.logits, labels)
    return named


def classifier_accuracy(logits: Float32[Tensor, "B K"], labels: Int[Tensor, " B"]) -> float:
    """Return the share of images whose most probable class is their label."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """Return |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of means m, n and covariances A, B (FID)."""
    pair = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in (first, second)]
    return float(fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])


def distance_to_reference(found: Features, reference: Reference) -> Float32[Tensor, " B"]:
    """Return how far each image is from the nearest kept reference image, in feature space."""
    nearest = [
        torch.cdist(part, reference.features).min(dim=1).values
        for part in torch.split(found.features, ROWS)
    ]
    return torch.cat(nearest)


def _measure(features: Float32[Tensor, "B F"]) -> Statistics:
    moments = Moments(features.shape[1])
    for batch in torch.split(features, ROWS):
        moments.update(batch)
    return moments.statistics()
