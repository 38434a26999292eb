"""Copies are counted as such, and fresh images of the same kind as one in a hundred."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from torch import Tensor

from mar.evaluation import statistics
from mar.evaluation.copies import Copies, CopyScale, nearest, nearest_other


def draw(count: int, seed: int, width: int = 4) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


TRAINING, HELD_OUT = draw(3000, 0), draw(2000, 1)
SCALE = CopyScale.measure(TRAINING, HELD_OUT)


def shares(features: Tensor) -> dict[str, float]:
    return Copies.find(features, TRAINING, SCALE).shares()


@pytest.mark.parametrize("distances_in_memory", [420, 40_000_000])
def test_nearest_images_are_those_of_a_search_tree(
    distances_in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "DISTANCES", distances_in_memory)
    some, others = draw(50, 2), draw(60, 3)
    distances, indices = KDTree(others.numpy()).query(some.numpy())
    np.testing.assert_allclose(nearest(some, others).distances, distances, rtol=1e-5)
    np.testing.assert_array_equal(nearest(some, others).indices, indices)
    distances, indices = KDTree(some.numpy()).query(some.numpy(), k=2)
    np.testing.assert_allclose(
        nearest_other(some).distances, np.asarray(distances)[:, 1], rtol=1e-5
    )
    np.testing.assert_array_equal(nearest_other(some).indices, np.asarray(indices)[:, 1])


def test_distances_in_memory_are_so_many_at_most() -> None:
    assert statistics.rows_at_a_time(5_000) == statistics.ROWS
    for others in (50_000, 1_281_167, 10**9):
        rows = statistics.rows_at_a_time(others)
        assert 1 <= rows <= max(1, statistics.DISTANCES / others)


@pytest.mark.parametrize("count", [500, 3000, 6000])
def test_of_fresh_images_one_in_a_hundred_counts_as_a_copy_however_many_they_are(
    count: int,
) -> None:
    found = shares(draw(count, 4))
    error = 3 * (0.01 / count + 0.01 / len(HELD_OUT)) ** 0.5
    assert found["training_copies"] == pytest.approx(0.01, abs=error)
    assert found["near_duplicates"] == pytest.approx(0.01, abs=1.5 * error)  # they come in pairs


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_planted_training_copies_are_found_and_are_no_duplicates(noise: float) -> None:
    features = draw(1000, 5)
    features[:200] = TRAINING[100:300] + noise * draw(200, 6)
    found = Copies.find(features, TRAINING, SCALE)
    assert found.shares()["training_copies"] == pytest.approx(0.208, abs=0.008)
    assert found.shares()["near_duplicates"] < 0.03
    torch.testing.assert_close(found.training.indices[:200], torch.arange(100, 300))


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_planted_duplicates_are_found_and_are_no_training_copies(noise: float) -> None:
    features = draw(1000, 7)
    features[:100] = features[100:200] + noise * draw(100, 8)
    found = Copies.find(features, TRAINING, SCALE)
    assert found.shares()["near_duplicates"] == pytest.approx(0.21, abs=0.015)
    assert found.shares()["training_copies"] < 0.03
    torch.testing.assert_close(found.others.indices[:100], torch.arange(100, 200))


def test_without_held_out_images_training_images_set_the_scale() -> None:
    scale = CopyScale.measure(TRAINING, HELD_OUT[:0])
    assert scale.basis == "training"
    assert scale.training_copy == pytest.approx(SCALE.training_copy, rel=0.3)


def test_exact_copies_count_even_where_many_real_images_are_there_twice() -> None:
    """Of a quarter of them: the distance of a copy is 0 then."""
    doubled = torch.cat([TRAINING[:300], TRAINING[:100]])
    scale = CopyScale.measure(doubled, HELD_OUT[:0])
    assert scale.training_copy == 0
    found = Copies.find(doubled[:200], doubled, scale)
    assert found.shares() == {"near_duplicates": 0, "training_copies": 1}


def test_a_scale_comes_back_from_its_file(tmp_path: Path) -> None:
    SCALE.write(tmp_path / "copies.json")
    assert CopyScale.read(tmp_path / "copies.json") == SCALE
    (tmp_path / "copies.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no digest"):
        CopyScale.read(tmp_path / "copies.json")
