"""Activations that are computed again take less memory and change no gradient."""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mar.activation_checkpointing import set_checkpointing
from mar.model.mar import MAR


def step(model: MAR, checkpointed: nn.Module | None) -> tuple[dict[str, Tensor], int]:
    """Return all gradients of a step, and how many numbers were kept for them."""
    set_checkpointing(model, False)
    if checkpointed is not None:
        set_checkpointing(checkpointed, True)
    rng = torch.Generator().manual_seed(3)
    shape = (4, model.latent.channels, model.latent.height, model.latent.width)
    latents = torch.randn(shape, generator=rng)
    draws = model.draw(4, rng)
    kept: set[tuple[int, int]] = set()  # one that is kept twice takes its memory once

    def count(tensor: Tensor) -> Tensor:
        kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().size()))
        return tensor

    torch.manual_seed(7)  # of dropout
    model.train().zero_grad()
    with saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(latents, torch.arange(4), draws)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return gradients, sum(size for _, size in kept)


def test_gradients_are_the_same_and_less_is_kept(tiny_model: MAR) -> None:
    parts = (None, tiny_model.transformer, tiny_model)
    (expected, usual), (_, less), (found, least) = (step(tiny_model, part) for part in parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert least < 0.9 * less < 0.9 * 0.9 * usual, (least, less, usual)
