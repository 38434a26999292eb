"""Scores of images against real ones: Frechet distances, Inception score, KID, MMD, precision,
recall.

torch-fidelity computes them from the features of any extractor, but for the MMD and the Frechet
distances, which are tested against it. Only with Inception's features do they have their well-known
names.

Shapes: B images, K classes, F features.
"""
# torch-fidelity has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Int
from torch import Tensor
from torch_fidelity.metric_isc import (
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    isc_features_to_metric,
)
from torch_fidelity.metric_kid import (
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    kid_features_to_metric,
)
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    prc_features_to_metric,
)

from mar.evaluation.extractors import Features
from mar.evaluation.mmd import mmd
from mar.evaluation.reference import Reference
from mar.evaluation.score_config import ScoreConfig
from mar.evaluation.score_names import SPREAD, ScoreNames, is_few, with_count
from mar.evaluation.statistics import (
    Statistics,
    frechet_distance,
    measure_features,
    rows_at_a_time,
)
from mar.evaluation.uncertainty import (
    bootstrap_spread,
    distance_at_infinity,
    infinity_warning,
    share_spread,
)


OTHER_CLASSES = 0.1  # share of images of another class, above which there is a warning; ours


def reference_warnings(names: ScoreNames, reference: Reference) -> list[str]:
    """Return warnings about scores that a reference cannot give, or that it makes too large."""
    warnings: list[str] = []
    count = reference.statistics.count
    if count is not None and is_few(count, reference.width):
        warnings.append(
            f"the reference has {count} images, which are few for {reference.width} features: "
            f"{names.fid} is too large, also that of many samples; compare it only with the same "
            "reference"
        )
    if not len(reference.features):
        warnings.append(
            f"{reference.source} has no images (arr_0): no {names.kid}, {names.mmd}, "
            f"{names.precision} and {names.recall}"
        )
    if names.sfid is not None and reference.spatial is None:
        warnings.append(f"{reference.source} has no mu_s and sigma_s: no {names.sfid}")
    return warnings


def class_warning(
    labels: Int[Tensor, " B"], num_classes: int, class_counts: Sequence[int] | None
) -> str | None:
    """Return a warning if images are of other classes than the real ones, or in other shares.

    Args:
        labels: Their classes.
        num_classes: That the generator knows.
        class_counts: Real images of each class; None if that is not known, and all have some.
    """
    found = labels.bincount(minlength=num_classes)
    known = class_counts is not None and len(class_counts) == num_classes
    real = torch.tensor(class_counts if known else [1] * num_classes)
    if lacking := int(((found == 0) & (real > 0)).sum()):
        return (
            f"the pictures lack {lacking} of the {int((real > 0).sum())} classes of the real "
            "images: only the accuracy and the precision do not suffer from that"
        )
    if not known:
        return None
    fair = (real.double() * found.sum() / real.sum()).ceil()  # whole images: no less than its share
    others = float((found - fair).clamp(min=0).sum() / found.sum())
    if others <= OTHER_CLASSES:
        return None
    return (
        f"the pictures have the classes in other shares than the real images ({others:.0%} would "
        "have to be of another class), which alone makes distances larger; sample.labels: as_data "
        "draws classes as often as the training images have them"
    )


def score(
    found: Features,
    labels: Int[Tensor, " B"],
    reference: Reference,
    *,
    names: ScoreNames,
    config: ScoreConfig,
) -> dict[str, float]:
    """Return the scores of images by their names, each with its spread where that is known.

    KID, MMD, precision and recall need kept features of real images, the Inception score needs
    logits, sFID the spatial features of both. The accuracy is the share of images whose label the
    extractor predicts.

    Args:
        found: The images' features; at least two.
        labels: Their classes.
        reference: What they are compared with.
        names: What the scores are called.
        config: The settings, which fit the number of images (`fit_sizes`).
    """
    scores = _distances(names.fid, found.features, reference.statistics, config)
    too_few = infinity_warning(names.fid_infinity, *found.features.shape)
    if config.infinity_points and too_few is None:
        extrapolated = distance_at_infinity(
            found.features,
            reference.statistics,
            points=config.infinity_points,
            seed=config.seed,
            with_spread=config.bootstrap > 0,
        )
        scores[names.fid_infinity] = extrapolated.value
        if extrapolated.spread is not None:
            scores[names.fid_infinity + SPREAD] = extrapolated.spread
    if names.sfid and found.spatial is not None and reference.spatial is not None:
        scores |= _distances(names.sfid, found.spatial, reference.spatial, config)
    if names.inception_score is not None and found.logits is not None:
        scores |= _inception_score(names.inception_score, found.logits, config)
    if len(reference.features):
        scores |= _neighbour_scores(names, found.features, reference.features, config)
    if names.accuracy is not None and found.logits is not None:
        accuracy = classifier_accuracy(found.logits, labels)
        scores[names.accuracy] = accuracy
        scores[names.accuracy + SPREAD] = share_spread(accuracy, len(labels))
    return scores


def classifier_accuracy(logits: Float32[Tensor, "B K"], labels: Int[Tensor, " B"]) -> float:
    """Return the share of images whose most probable class is their label."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def distance_to_reference(found: Features, reference: Reference) -> Float32[Tensor, " B"]:
    """Return how far each image is from the nearest kept reference image, in feature space."""
    nearest = [
        torch.cdist(part, reference.features).min(dim=1).values
        for part in found.features.split(rows_at_a_time(len(reference.features)))
    ]
    return torch.cat(nearest)


def _distances(
    name: str, features: Float32[Tensor, "B F"], real: Statistics, config: ScoreConfig
) -> dict[str, float]:
    """Return a Frechet distance and its spread over other samples."""
    count, width = features.shape
    name = with_count(name, count, width)

    def distance(some: Float32[Tensor, "B F"]) -> float:
        return frechet_distance(measure_features(some), real)

    scores = {name: distance(features)}
    if config.bootstrap:
        scores[name + SPREAD] = bootstrap_spread(
            lambda indices: distance(features[indices]),
            count,
            resamples=config.bootstrap,
            seed=config.seed,
        )
    return scores


def _inception_score(
    name: str, logits: Float32[Tensor, "B K"], config: ScoreConfig
) -> dict[str, float]:
    """Return the Inception score; its spread is that of the splits, or of resamples for one."""
    splits, seed = config.is_splits, config.seed
    found = isc_features_to_metric(logits, splits, shuffle=config.is_shuffle, rng_seed=seed)
    scores = {name: float(found[KEY_METRIC_ISC_MEAN])}
    if splits > 1:
        scores[name + SPREAD] = float(found[KEY_METRIC_ISC_STD])
    elif config.bootstrap:
        scores[name + SPREAD] = bootstrap_spread(
            lambda some: isc_features_to_metric(logits[some], 1, False)[KEY_METRIC_ISC_MEAN],
            len(logits),
            resamples=config.bootstrap,
            seed=seed,
        )
    return scores


def _neighbour_scores(
    names: ScoreNames,
    features: Float32[Tensor, "B F"],
    real: Float32[Tensor, "K F"],
    config: ScoreConfig,
) -> dict[str, float]:
    """Return what compares single images: KID, MMD, and the shares of images within the manifold of
    the others.

    KID's spread is that of the subsets; there is none where each would be a whole set of images.
    """
    kid = kid_features_to_metric(
        features.double(),
        real.double(),
        kid_subsets=config.kid_subsets,
        kid_subset_size=config.kid_subset_size,
        rng_seed=config.seed,
        verbose=False,
    )
    scores = {names.kid: float(kid[KEY_METRIC_KID_MEAN])}
    if config.kid_subsets > 1 and config.kid_subset_size < min(len(features), len(real)):
        scores[names.kid + SPREAD] = float(kid[KEY_METRIC_KID_STD])
    discrepancy = mmd(features, real, seed=config.seed)
    scores[names.mmd] = discrepancy.value
    if discrepancy.spread is not None:
        scores[names.mmd + SPREAD] = discrepancy.spread
    shares = prc_features_to_metric(
        features,
        real,
        prc_neighborhood=config.neighbours,
        prc_batch_size=rows_at_a_time(max(len(features), len(real))),
        save_cpu_ram=True,
        verbose=False,
    )
    for name, key, count in (
        (names.precision, KEY_METRIC_PRECISION, len(features)),
        (names.recall, KEY_METRIC_RECALL, len(real)),
    ):
        scores[name] = float(shares[key])
        scores[name + SPREAD] = share_spread(scores[name], count)
    return scores
