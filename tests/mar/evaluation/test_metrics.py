"""Scores equal their closed forms and torch-fidelity's own, and their names say what they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from score_configs import CONFIG
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import (
    KEY_METRIC_FID,
    KEY_METRIC_ISC_MEAN,
    KEY_METRIC_ISC_STD,
    KEY_METRIC_KID_MEAN,
    KEY_METRIC_KID_STD,
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    calculate_metrics,
)
from torch_fidelity.metric_fid import fid_statistics_to_metric

from mar.evaluation import classifier_extractor, dinov2, inception
from mar.evaluation.classifier import ClassifierConfig, new_classifier, save_classifier
from mar.evaluation.classifier_extractor import SCORES, ClassifierReference
from mar.evaluation.extractors import Features, extract, gather
from mar.evaluation.metrics import class_warning, distance_to_reference, reference_warnings, score
from mar.evaluation.reference import Reference, ReferenceInfo, summarise
from mar.evaluation.score_config import fit_sizes
from mar.evaluation.score_names import ScoreNames, parts
from mar.evaluation.statistics import Moments, Statistics, frechet_distance
from mar.sampling.labels import labels_as_data


BY_CLASSIFIER = SCORES["classifier"]
CPU = torch.device("cpu")


def normal(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def moments_of(features: Tensor) -> Statistics:
    moments = Moments(features.shape[1])
    moments.update(features)
    return moments.statistics()


def reference_of(features: Tensor) -> Reference:
    batches = (Features(part, None) for part in features.split(17))
    return summarise(batches, count=len(features), num_features=len(features))


def score_of(
    found: Features, reference: Reference, names: ScoreNames = SCORES["classifier"]
) -> dict[str, float]:
    labels = torch.zeros(len(found.features), dtype=torch.int64)
    return score(found, labels, reference, names=names, config=CONFIG)


# Statistics


@pytest.mark.parametrize("batch", [1, 7, 100])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_streamed_covariance_equals_that_of_numpy(batch: int, offset: float) -> None:
    features = normal(100, 5, 0) @ normal(5, 5, 1) + offset
    moments = Moments(5)
    for part in features.split(batch):
        moments.update(part)
    found = moments.statistics()
    expected = features.double().numpy()
    assert found.count == 100
    assert np.allclose(found.mean.numpy(), expected.mean(axis=0), rtol=1e-13)
    assert np.allclose(found.covariance.numpy(), np.cov(expected, rowvar=False), rtol=1e-10)


def test_statistics_without_some_images_are_those_of_the_others() -> None:
    features = normal(60, 5, 0) + 1e3
    moments = Moments(5)
    moments.update(features)
    for left_out in ([], [3], list(range(0, 60, 2))):
        kept = [index for index in range(60) if index not in left_out]
        found, expected = moments.without(features[left_out]), moments_of(features[kept])
        assert found.count == len(kept)
        assert torch.allclose(found.mean, expected.mean, rtol=1e-13)
        assert torch.allclose(found.covariance, expected.covariance, rtol=1e-9)


def test_features_are_kept_at_equal_distances_in_any_batches() -> None:
    features = torch.arange(100.0)[:, None].expand(-1, 2)
    for size in (1, 9, 100):
        batches = (Features(part, None) for part in features.split(size))
        kept = summarise(batches, count=100, num_features=4).features
        assert kept[:, 0].tolist() == [0, 25, 50, 75]


def test_a_reference_is_the_same_after_saving(tmp_path: Path) -> None:
    reference = reference_of(normal(30, 4, 0))
    reference.save(tmp_path / "statistics.safetensors")
    loaded = Reference.load(tmp_path / "statistics.safetensors")
    assert loaded.digest() == reference.digest()
    assert loaded.statistics.count == 30
    assert torch.equal(loaded.features, reference.features)
    assert loaded.source == "training split"
    assert loaded.digest() != reference_of(normal(30, 4, 1)).digest()


# Scores


def test_the_distance_of_gaussians_is_that_of_the_closed_form() -> None:
    mean_1, mean_2 = normal(6, 1, 0)[:, 0].double(), normal(6, 1, 1)[:, 0].double()
    std_1, std_2 = torch.arange(1, 7).double(), torch.arange(6, 0, -1).double()
    first, second = (
        Statistics(mean, torch.diag(std**2), None)
        for mean, std in ((mean_1, std_1), (mean_2, std_2))
    )
    expected = ((mean_1 - mean_2) ** 2).sum() + ((std_1 - std_2) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-10)


def test_shifted_features_raise_the_distance_by_the_square_of_the_shift() -> None:
    features, shift = normal(200, 4, 0), torch.tensor([3.0, 0.0, -4.0, 0.0])
    reference = moments_of(features)
    assert frechet_distance(moments_of(features + shift), reference) == pytest.approx(25, rel=1e-5)


def test_equal_sets_are_at_distance_zero_and_cover_each_other() -> None:
    features = normal(100, 8, 0)
    scores = score_of(Features(features, None), reference_of(features))
    assert scores["classifier_fid_100"] == pytest.approx(0, abs=1e-8)
    assert scores["classifier_precision"] == scores["classifier_recall"] == 1.0


def test_sets_far_apart_do_not_cover_each_other() -> None:
    features = normal(100, 8, 0)
    scores = score_of(Features(features + 100, None), reference_of(features))
    assert scores["classifier_precision"] == scores["classifier_recall"] == 0.0
    assert scores["classifier_kid"] > 1


def test_precision_is_of_the_samples_and_recall_of_the_real_images() -> None:
    real = torch.cat([normal(50, 4, 0), normal(50, 4, 1) + 100])
    one_mode = normal(100, 4, 2) * 0.3
    scores = score_of(Features(one_mode, None), reference_of(real))
    assert scores["classifier_precision"] > 0.95
    assert scores["classifier_recall"] < 0.5


def test_certain_and_balanced_predictions_score_the_number_of_classes() -> None:
    logits = 50 * torch.eye(4).repeat(50, 1)
    scores = score_of(Features(normal(200, 4, 0), logits), reference_of(normal(100, 4, 1)))
    assert scores["classifier_is"] == pytest.approx(4, rel=0.02)  # splits are not quite balanced
    unsure = score_of(
        Features(normal(200, 4, 0), torch.zeros(200, 4)), reference_of(normal(100, 4, 1))
    )
    assert unsure["classifier_is"] == pytest.approx(1)


def test_recognised_is_the_share_of_images_taken_for_their_label() -> None:
    found = Features(normal(100, 4, 0), torch.eye(2).repeat(50, 1))
    labels = torch.tensor([0, 1, 0, 0] * 25)
    reference = reference_of(normal(100, 4, 1))
    scores = score(found, labels, reference, names=BY_CLASSIFIER, config=CONFIG)
    assert scores["classifier_accuracy"] == 0.75
    assert "classifier_accuracy" not in score(
        found, labels, reference, names=inception.SCORES, config=CONFIG
    )


NAMES = [*SCORES.values(), inception.SCORES, dinov2.SCORES]


@pytest.mark.parametrize("names", NAMES, ids=lambda names: names.fid)
def test_only_inception_gives_scores_their_plain_names(names: ScoreNames) -> None:
    found = Features(normal(100, 4, 0), normal(100, 3, 1))
    scores = {parts(name).base for name in score_of(found, reference_of(normal(100, 4, 2)), names)}
    plain = {"fid", "inception_score", "kid", "mmd", "precision", "recall"}
    assert scores & plain == (plain if names is inception.SCORES else set())
    assert scores == {name for name in names if name is not None} - {names.rfid, names.sfid}


def test_no_two_extractors_share_the_name_of_a_score() -> None:
    every = [name for names in NAMES for name in names if name is not None]
    assert len(every) == len(set(every))


def test_statistics_without_images_give_no_scores_of_single_images() -> None:
    reference = Reference(moments_of(normal(100, 4, 0)), torch.empty(0, 4), "somewhere.npz")
    scores = score_of(Features(normal(50, 4, 1), normal(50, 3, 2)), reference, inception.SCORES)
    assert set(scores) == {"fid_50", "inception_score", "inception_score_std"}


def test_one_split_has_no_spread() -> None:
    config = CONFIG.model_copy(update={"is_splits": 1})
    found, labels = Features(normal(60, 4, 1), normal(60, 3, 2)), torch.zeros(60, dtype=torch.int64)
    scores = score(
        found, labels, reference_of(normal(60, 4, 0)), names=BY_CLASSIFIER, config=config
    )
    assert "classifier_is_std" not in scores


def test_the_same_seed_gives_the_same_scores_whatever_else_was_drawn() -> None:
    found, reference = Features(normal(90, 4, 0), normal(90, 3, 1)), reference_of(normal(80, 4, 2))
    first = score_of(found, reference)
    torch.rand(3)
    np.random.rand(3)  # noqa: NPY002
    assert score_of(found, reference) == first


def test_the_distance_to_the_reference_is_that_to_its_nearest_image() -> None:
    reference = reference_of(torch.tensor([[0.0, 0.0], [10.0, 0.0]]))
    found = Features(torch.tensor([[0.0, 3.0], [9.0, 0.0], [10.0, 0.0]]), None)
    assert torch.allclose(distance_to_reference(found, reference), torch.tensor([3.0, 1.0, 0.0]))


# The ADM suite's definitions


def test_the_numbers_of_the_adm_suite_are_those_of_its_definitions() -> None:
    """Computed here as evaluations/evaluator.py of ADM says, with numpy and scipy alone."""
    features, spatial, logits = normal(60, 4, 0) + 0.5, normal(60, 6, 1), 3 * normal(60, 5, 2)
    real, real_spatial = normal(50, 4, 3), normal(50, 6, 4) * 1.5
    reference = Reference(moments_of(real), real, "adm.npz", moments_of(real_spatial))
    adm = CONFIG.model_copy(update={"is_splits": 3, "is_shuffle": False, "neighbours": 3})
    found = Features(features, logits, spatial)
    labels = torch.zeros(60, dtype=torch.int64)
    scores = score(found, labels, reference, names=inception.SCORES, config=adm)

    def frechet(first: Tensor, second: Tensor) -> float:
        x, y = first.double().numpy(), second.double().numpy()
        a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
        shift = x.mean(axis=0) - y.mean(axis=0)
        return float(shift @ shift + np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(a @ b)).real)

    def radii(x: np.ndarray) -> np.ndarray:
        distances = ((x[:, None] - x[None]) ** 2).sum(axis=2)
        return np.partition(distances, 3, axis=1)[:, 3]  # the nearest is the image itself

    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    parts_of_is = [
        np.exp((q * (np.log(q) - np.log(q.mean(axis=0)))).sum(axis=1).mean())
        for q in (p[:20], p[20:40], p[40:])  # in the order of the images
    ]
    x, y = features.double().numpy(), real.double().numpy()
    across = ((x[:, None] - y[None]) ** 2).sum(axis=2)
    expected = {
        "fid_60": frechet(features, real),
        "sfid_60": frechet(spatial, real_spatial),
        "inception_score": np.mean(parts_of_is),
        "precision": (across <= radii(y)[None]).any(axis=1).mean(),
        "recall": (across <= radii(x)[:, None]).any(axis=0).mean(),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert 0 < scores["precision"] < 1


def test_few_images_of_the_same_distribution_do_not_score_a_plain_fid() -> None:
    scores = score_of(Features(normal(40, 64, 0)), reference_of(normal(3000, 64, 1)))
    assert scores["classifier_fid_40"] > 10  # 3 of 3,000
    assert "classifier_fid" not in scores
    assert abs(scores["classifier_kid"]) < 0.1


def test_spreads_stand_beside_their_scores() -> None:
    config = CONFIG.model_copy(update={"bootstrap": 4, "infinity_points": 3, "is_splits": 1})
    found, labels = Features(normal(210, 4, 1), normal(210, 3, 2)), torch.arange(210) % 3
    reference = reference_of(normal(60, 4, 0))
    scores = score(found, labels, reference, names=BY_CLASSIFIER, config=config)
    bare = {name for name in scores if not parts(name).is_spread}
    spreads = {name.removesuffix("_std") for name in scores if parts(name).is_spread}
    assert spreads == bare
    assert "classifier_fid_inf" in bare
    assert all(scores[f"{name}_std"] > 0 for name in spreads)
    accuracy = scores["classifier_accuracy"]
    assert scores["classifier_accuracy_std"] == (accuracy * (1 - accuracy) / 210) ** 0.5


def test_subsets_that_are_all_the_same_tell_no_spread() -> None:
    few, all_of_them = reference_of(normal(60, 4, 0)), reference_of(normal(40, 4, 0))
    found = Features(normal(60, 4, 1))
    assert score_of(found, few)["classifier_kid_std"] > 0
    assert "classifier_kid_std" not in score_of(found, all_of_them)


def test_nothing_is_extrapolated_from_fewer_images_than_features() -> None:
    config = CONFIG.model_copy(update={"infinity_points": 3})
    found, labels = Features(normal(39, 4, 1)), torch.zeros(39, dtype=torch.int64)
    reference = reference_of(normal(60, 4, 0))
    fitted = fit_sizes(config, 39, 60)
    scores = score(found, labels, reference, names=BY_CLASSIFIER, config=fitted)
    assert "classifier_fid_inf" not in scores
    assert "classifier_fid_39" in scores


def test_a_distance_of_singular_covariances_is_that_of_torch_fidelity() -> None:
    first, second = (moments_of(normal(5, 12, seed)) for seed in (0, 1))
    pair = [{"mu": it.mean.numpy(), "sigma": it.covariance.numpy()} for it in (first, second)]
    expected = fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_images_of_some_classes_get_a_warning() -> None:
    labels = torch.tensor([0, 0, 2])
    for counts in ([2, 1, 1], None):
        warning = class_warning(labels, 3, counts)
        assert warning is not None
        assert warning.startswith("the pictures lack 1 of the 3 classes of the real images: only")
    assert class_warning(labels, 3, [2, 0, 1]) is None  # nor are there real ones of that class
    assert class_warning(torch.arange(3), 3, None) is None


def test_classes_in_other_shares_than_the_real_ones_get_a_warning() -> None:
    equal = torch.arange(30) % 3
    assert class_warning(equal, 3, [100, 100, 90]) is None
    warning = class_warning(equal, 3, [800, 100, 100])
    assert warning is not None
    assert "(47% would have to be of another class)" in warning  # 2 * (1/3 - 1/10)
    as_data = labels_as_data(30, [800, 100, 100], seed=0)
    assert class_warning(as_data, 3, [800, 100, 100]) is None


@pytest.mark.parametrize("count", [12, 16])
def test_shares_that_whole_images_cannot_have_get_no_warning(count: int) -> None:
    real = [50] * 10
    assert class_warning(torch.arange(count) % 10, 10, real) is None
    assert class_warning(labels_as_data(count, real, seed=0), 10, real) is None


def test_a_reference_says_what_it_cannot_give_and_that_it_is_small() -> None:
    published = Reference(moments_of(normal(9, 4, 0)), torch.empty(0, 4), "a.npz")
    few, no_images, no_layout = reference_warnings(inception.SCORES, published)
    assert few.startswith("the reference has 9 images, which are few for 4 features: fid is too")
    assert no_images == "a.npz has no images (arr_0): no kid, mmd, precision and recall"
    assert no_layout == "a.npz has no mu_s and sigma_s: no sfid"
    assert reference_warnings(BY_CLASSIFIER, reference_of(normal(2048, 4, 0))) == []


# The whole against torch-fidelity's


class Pictures(Dataset[Tensor]):
    """Random images in memory, for us and for torch-fidelity."""

    def __init__(self, count: int, seed: int, *, brightest: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        images = torch.randint(brightest, (count, 3, 8, 8), generator=rng)
        self.images = images.to(torch.uint8)
        self.image_size = 8

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def stack(self, indices: list[int]) -> Tensor:
        return self.images[indices]


def save_extractor(folder: Path, *, num_classes: int) -> ClassifierReference:
    classifier = ClassifierConfig(
        seed=3,
        width=8,
        feature_width=16,
        steps=1,
        batch_size=2,
        lr=1e-3,
        weight_decay=0.0,
        shift=0,
        flip=False,
        noise=0.0,
    )
    model = new_classifier(classifier, image_size=8, num_classes=num_classes)
    with torch.no_grad():
        model.head.weight.mul_(1000)  # else every class is as likely, and IS is 1
    save_classifier(folder / "classifier.safetensors", model.eval())
    return ClassifierReference(
        extractor="classifier", split="train", num_features=1000, classifier=classifier
    )


@pytest.fixture
def reference_config(tmp_path: Path) -> ClassifierReference:
    return save_extractor(tmp_path, num_classes=5)


def test_scores_by_a_classifier_of_one_class_are_called_untrained(tmp_path: Path) -> None:
    """There is nothing that it could have learned."""
    config = save_extractor(tmp_path, num_classes=1)
    extractor = config.load(tmp_path)
    pictures = Pictures(80, 0, brightest=256)
    found = gather(extract(extractor, pictures, name="pictures", device=CPU, workers=0), 80)
    scores = score_of(found, reference_of(normal(60, 16, 1)), extractor.names)
    assert {parts(name).base for name in scores} == {
        "untrained_fid",
        "untrained_kid",
        "untrained_mmd",
        "untrained_precision",
        "untrained_recall",
    }
    warning = config.one_class_warning(1)
    assert warning is not None
    assert "untrained_fid" in warning
    assert config.one_class_warning(2) is None


def test_every_score_equals_that_of_torch_fidelity_called_whole(
    tmp_path: Path, reference_config: ClassifierReference
) -> None:
    samples, real = Pictures(150, 0, brightest=256), Pictures(130, 1, brightest=200)
    extractor = reference_config.load(tmp_path)
    reference = summarise(
        extract(extractor, real, name="real", device=CPU, workers=0), count=130, num_features=1000
    )
    found = gather(extract(extractor, samples, name="samples", device=CPU, workers=0), 150)
    scores = score_of(found, reference)
    expected = calculate_metrics(
        input1=samples,
        input2=real,
        feature_extractor=classifier_extractor.NAME,
        feature_extractor_weights_path=str(tmp_path / "classifier.safetensors"),
        isc=True,
        fid=True,
        kid=True,
        prc=True,
        isc_splits=CONFIG.is_splits,
        kid_subsets=CONFIG.kid_subsets,
        kid_subset_size=CONFIG.kid_subset_size,
        prc_neighborhood=CONFIG.neighbours,
        rng_seed=CONFIG.seed,
        batch_size=50,
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    keys = {
        "classifier_fid_150": KEY_METRIC_FID,
        "classifier_is": KEY_METRIC_ISC_MEAN,
        "classifier_is_std": KEY_METRIC_ISC_STD,
        "classifier_kid": KEY_METRIC_KID_MEAN,
        "classifier_kid_std": KEY_METRIC_KID_STD,
        "classifier_precision": KEY_METRIC_PRECISION,
        "classifier_recall": KEY_METRIC_RECALL,
    }
    for name, key in keys.items():
        assert scores[name] == pytest.approx(expected[key], rel=1e-4), name
    assert scores["classifier_fid_150"] > 0.01
    assert scores["classifier_is"] > 1.1


def test_an_id_stands_for_weights_and_statistics(
    tmp_path: Path, reference_config: ClassifierReference
) -> None:
    extractor = reference_config.load(tmp_path)
    infos = [
        ReferenceInfo.describe(extractor, reference_of(normal(20, 16, seed)), 8, None)
        for seed in (0, 0, 1)
    ]
    assert infos[0] == infos[1]
    assert infos[0].id != infos[2].id


def test_images_of_another_size_and_other_weights_are_refused(
    tmp_path: Path, reference_config: ClassifierReference
) -> None:
    extractor = reference_config.load(tmp_path)
    info = ReferenceInfo.describe(extractor, reference_of(normal(20, 16, 0)), 8, None)
    info.check(extractor, height=8, width=8)
    with pytest.raises(ValueError, match="samples have 16x16 pixels, the real images 8x8"):
        info.check(extractor, height=16, width=16)
    changed = info.model_copy(update={"weights": "0" * 64})
    with pytest.raises(ValueError, match=r"the weights of classifier have the SHA-256 .* but 0000"):
        changed.check(extractor, height=8, width=8)
