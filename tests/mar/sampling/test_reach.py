"""Generated latents that are far larger than those of the data are noticed, and others are not."""

import torch
from sample_configs import sample_config

from mar.sampling.reach import Reach


def test_values_beyond_the_data_are_counted_in_the_data_s_units() -> None:
    reach = Reach(largest=6.0, latent_std=2.0)
    reach.update(torch.tensor([[[[1.0, -2.9], [3.1, -400.0]]]]))
    assert reach.share == 0.5
    reach.update(torch.zeros(1, 1, 2, 2))
    assert reach.share == 0.25
    expected = (
        "25.00% of the values of the generated latents are beyond 6, the largest of the cached"
    )
    assert (reach.warning(None) or "").startswith(expected)


def test_a_bound_is_advised_where_the_head_has_one_and_none_is_set() -> None:
    reach = Reach(largest=6.0, latent_std=2.0)
    reach.update(torch.full((1, 1, 2, 2), 400.0))
    unset = sample_config("diffusion", x_0_bound=None).unset_bound
    said = reach.warning(unset) or ""
    assert said.endswith("or nothing bounds what it draws (sample.head.x_0_bound)")
    for config in (sample_config("diffusion", x_0_bound=3.0), sample_config("flow")):
        said = reach.warning(config.unset_bound) or ""
        assert said.endswith("the generator is trained too little")


def test_what_is_not_finite_is_beyond() -> None:
    reach = Reach(largest=6.0, latent_std=1.0)
    reach.update(torch.tensor([[[[torch.nan, torch.inf, 0.0, 0.0]]]]))
    assert reach.share == 0.5


def test_a_few_values_beyond_are_no_reason_to_warn() -> None:
    reach = Reach(largest=1.0, latent_std=1.0)
    latents = torch.zeros(1, 1, 100, 100)
    latents[0, 0, 0, :10] = 2.0
    reach.update(latents)
    assert reach.warning(None) is None
    latents[0, 0, 0, :11] = 2.0
    reach.update(latents)
    assert reach.warning(None) is not None


def test_codes_and_latents_of_no_data_are_not_compared() -> None:
    for largest, latents in [
        (1.0, torch.full((1, 1, 2, 2), 1000)),
        (None, torch.full((1, 1, 2, 2), 1000.0)),
    ]:
        reach = Reach(largest, latent_std=1.0)
        reach.update(latents)
        assert reach.warning(None) is None


def test_what_several_processes_counted_is_added_up() -> None:
    parts = [Reach(largest=6.0, latent_std=2.0) for _ in range(3)]
    parts[0].update(torch.full((1, 1, 2, 2), 3.1))
    parts[2].update(torch.zeros(1, 1, 4, 3))
    assert Reach.of(parts).share == 0.25
    assert parts[2].share == 0.0
