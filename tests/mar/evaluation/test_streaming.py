"""Scores are the same for any number of processes and any shards, and few images are held."""

from pathlib import Path

import torch
from processes import in_processes
from torch import Tensor, nn

from mar.evaluation import inception
from mar.evaluation.extractors import BATCH, Extractor, extract, gather
from mar.evaluation.metrics import score
from mar.evaluation.reference import Reference, summarise
from mar.evaluation.score_config import EvaluateConfig
from mar.sampling.store import SampleSet, shard_path, write_shard


COUNT = 300
CONFIG = EvaluateConfig(
    is_splits=3,
    is_shuffle=False,
    kid_subsets=4,
    kid_subset_size=50,
    neighbours=3,
    bootstrap=3,
    infinity_points=3,
    seed=0,
    geneval=None,
    clip_score=None,
)


class Layers(nn.Module):
    """A stand-in for Inception: features, logits and spatial features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(48, 13, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(
                torch.randn(13, 48, generator=torch.Generator().manual_seed(0)) / 100
            )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, logits, spatial = self.layer(images.flatten(1).float()).split([4, 6, 3], dim=1)
        return features, logits, spatial


def write(folder: Path, size: int) -> Path:
    """Write the same images in shards of some size, the last one first."""
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(256, (COUNT, 3, 4, 4), generator=rng).to(torch.uint8)
    labels = torch.arange(COUNT) % 6
    folder.mkdir()
    parts = list(enumerate(torch.arange(COUNT).split(size)))
    for number, part in reversed(parts):
        path = shard_path(folder, number)
        first = int(part[0])
        write_shard(
            path, images[part], labels=labels[part], first_index=first, num_classes=6, seed=0
        )
    return folder


def scores(folder: Path) -> tuple[str, dict[str, float]]:
    """Return the digest of a reference that is measured, and the scores against it."""
    torch.set_num_threads(1)
    samples, extractor = SampleSet(folder), Extractor("any", Layers(), inception.SCORES)
    device = torch.device("cpu")
    batches = extract(extractor, samples, name="real", device=device, workers=0)
    reference: Reference = summarise(batches, count=COUNT, num_features=100)
    found = gather(extract(extractor, samples, name="samples", device=device, workers=0), COUNT)
    return reference.digest(), score(
        found, samples.labels, reference, names=inception.SCORES, config=CONFIG
    )


def test_any_processes_and_any_shards_give_the_same_scores_bit_for_bit(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", COUNT)
    expected = scores(whole)
    assert expected[1].keys() >= {f"fid_{COUNT}", f"sfid_{COUNT}", "inception_score", "kid"}
    small = write(tmp_path / "small", 7)
    assert scores(small) == expected
    for num in (2, 4):
        found = in_processes(scores, num, tmp_path / f"group{num}", small)
        assert found == [expected] * num


def test_no_more_images_are_held_than_a_batch(tmp_path: Path) -> None:
    asked: list[int] = []

    class Counted(SampleSet):
        def stack(self, indices: list[int]) -> Tensor:
            asked.append(len(indices))
            return super().stack(indices)

    extractor = Extractor("any", Layers(), inception.SCORES)
    images = Counted(write(tmp_path / "shards", 50))
    for _ in extract(extractor, images, name="s", device=torch.device("cpu"), workers=0):
        pass
    assert sum(asked) == COUNT
    assert max(asked) == BATCH
