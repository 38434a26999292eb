"""A generator's stream is a function of its keys alone, and differs between keys."""

import torch

from mar.seeds import make_rng


def draw(*keys: int | str) -> list[float]:
    return torch.rand(4, generator=make_rng(*keys)).tolist()


def test_the_same_keys_give_the_same_stream() -> None:
    first = draw(3, 1)
    torch.rand(7)
    assert draw(3, 1) == first


def test_any_other_keys_give_another_stream() -> None:
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 23), (12, 3), (123,), ("noise", 0), ("mask", 0)]
    streams = {tuple(draw(*key)) for key in keys}
    assert len(streams) == len(keys)


def test_streams_of_neighbouring_keys_are_unrelated() -> None:
    streams = torch.stack([torch.randn(4096, generator=make_rng(0, key)) for key in range(16)])
    correlation = torch.corrcoef(streams) - torch.eye(16)
    assert correlation.abs().max() < 0.08  # five standard deviations of independent streams


def test_seeds_stay_what_they_were() -> None:
    # SHA-256 of "[0, 1]" and '["noise", 7]': another hash would change every result.
    assert make_rng(0, 1).initial_seed() == 5267876066817117166
    assert make_rng("noise", 7).initial_seed() == 4303419998366015796


def test_drawing_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    draw(5)
    assert torch.equal(torch.get_rng_state(), state)
