"""A latent gets the code that is nearest, and codes that nothing uses come back to life."""

import math

import pytest
import torch
from torch import Tensor

from mar.tokenizers import codebook
from mar.tokenizers.codebook import DEAD_AFTER, Codebook, CodebookUse, nearest, use_of


SIZE, CHANNELS = 7, 3


@pytest.fixture
def codes(rng: torch.Generator) -> Codebook:
    made = Codebook(SIZE, CHANNELS)
    made.initialize(rng)
    return made


def brute_force(latents: Tensor, codes: Tensor) -> Tensor:
    return (latents[:, None] - codes[None]).square().sum(dim=2).argmin(dim=1)


@pytest.mark.parametrize("block", [1, 20, 10**6])
def test_the_nearest_code_is_that_of_all_distances(
    block: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codebook, "BLOCK", block)
    latents = torch.randn(50, CHANNELS, generator=rng)
    codes = 0.7 * torch.randn(SIZE, CHANNELS, generator=rng) + 0.5
    assert torch.equal(nearest(latents, codes), brute_force(latents, codes))


def test_of_equal_codes_the_first_is_chosen(rng: torch.Generator) -> None:
    codes = torch.randn(4, CHANNELS, generator=rng)[[0, 1, 1, 3]]
    assert nearest(codes, codes).tolist() == [0, 1, 1, 3]


def test_a_lower_precision_around_it_chooses_no_other_code(rng: torch.Generator) -> None:
    """In bfloat16 1000.25 and 1000.75 are one number."""
    codes = 1000 + torch.linspace(0, 3, 13)[:, None].expand(13, CHANNELS)
    latents = codes[torch.randint(13, (40,), generator=rng)] + 0.05
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest(latents, codes), brute_force(latents, codes))


def test_codes_come_back_from_their_indices(codes: Codebook, rng: torch.Generator) -> None:
    indices = torch.randint(SIZE, (2, 4, 5), generator=rng)
    latents = codes.embed(indices)
    assert torch.equal(latents[1, :, 2, 3], codes.embedding.weight[indices[1, 2, 3]])
    assert torch.equal(codes.quantise(latents), indices)


def test_initial_codes_are_small_and_differ_by_seed(codes: Codebook) -> None:
    first = codes.embedding.weight.detach().clone()
    assert 0.5 / SIZE < float(first.abs().max()) <= 1 / SIZE
    codes.initialize(torch.Generator().manual_seed(0))
    assert torch.equal(codes.embedding.weight, first)
    codes.initialize(torch.Generator().manual_seed(1))
    assert not torch.equal(codes.embedding.weight, first)


# Use


def test_use_of_codes_is_that_of_its_closed_forms() -> None:
    equal, one = use_of(torch.tensor([4, 0, 4, 4])), use_of(torch.tensor([0, 9]))
    assert float(equal["codebook_use"]) == 0.75
    assert float(equal["perplexity"]) == pytest.approx(3)
    assert float(one["codebook_use"]) == 0.5
    assert float(one["perplexity"]) == pytest.approx(1)
    uneven = use_of(torch.tensor([3, 1]))["perplexity"]
    assert float(uneven) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_use_is_counted_over_all_batches(rng: torch.Generator) -> None:
    indices = torch.randint(SIZE - 1, (6, 3, 3), generator=rng)
    use = CodebookUse(SIZE)
    for part in indices.split([1, 5]):
        use.update(part)
    whole = use_of(indices.flatten().bincount(minlength=SIZE))
    assert use.compute() == {name: float(value) for name, value in whole.items()}


def test_without_a_codebook_there_is_no_use() -> None:
    use = CodebookUse(None)
    use.update(None)
    assert use.compute() == {}


# Revival


def test_only_codes_unused_for_long_are_revived_as_latents(
    codes: Codebook, rng: torch.Generator
) -> None:
    codes.unused_steps.zero_()
    before = codes.embedding.weight.detach().clone()
    latents = 10 + torch.randn(2, CHANNELS, 4, 4, generator=rng)
    used = torch.tensor([1, 0, 3, 0, 1, 1, 1])
    for _ in range(DEAD_AFTER - 1):
        codes.count(used)
    assert not codes.revive(latents, rng).any()
    codes.count(torch.tensor([1, 2, 0, 0, 1, 1, 1]))  # at last code 1, and not 2
    assert codes.unused_steps.tolist() == [0, 0, 1, DEAD_AFTER, 0, 0, 0]
    assert codes.revive(latents, rng).tolist() == [index == 3 for index in range(SIZE)]
    after = codes.embedding.weight.detach()
    assert torch.equal(after[[0, 1, 2, 4, 5, 6]], before[[0, 1, 2, 4, 5, 6]])
    rows = latents.movedim(1, 3).flatten(0, 2)
    assert (after[3] == rows).all(dim=1).any()
    assert codes.unused_steps.tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_fresh_codes_that_a_batch_does_not_use_become_latents_of_it(
    codes: Codebook, rng: torch.Generator
) -> None:
    latents = 10 + torch.randn(2, CHANNELS, 4, 4, generator=rng)
    codes.count(torch.tensor([0, 0, 32, 0, 0, 0, 0]))
    revived = codes.revive(latents, rng)
    assert revived.tolist() == [index != 2 for index in range(SIZE)]
    rows = codes.embedding.weight.detach()[revived]
    assert len(rows.unique(dim=0)) == SIZE - 1  # distinct latents
    assert float(rows.min()) > 5


def test_revival_depends_on_the_generator_alone(rng: torch.Generator) -> None:
    latents = torch.randn(2, CHANNELS, 4, 4, generator=rng)
    made: list[Tensor] = []
    for seed in (1, 1, 2):
        codes = Codebook(SIZE, CHANNELS)
        codes.initialize(torch.Generator().manual_seed(0))
        torch.rand(3)
        codes.revive(latents, torch.Generator().manual_seed(seed))
        made.append(codes.embedding.weight.detach())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_a_batch_of_fewer_latents_than_dead_codes_serves_all(
    codes: Codebook, rng: torch.Generator
) -> None:
    latents = torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1).expand(2, CHANNELS, 1, 1)
    codes.revive(latents, rng)
    assert codes.embedding.weight[:, 0].unique().tolist() == [2, 3]
