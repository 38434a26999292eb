"""The quantised autoencoder follows VQ-VAE's Equation 3, and its gradient passes the codebook."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mar.tokenizers.codebook import DEAD_AFTER
from mar.tokenizers.interface import Codes
from mar.tokenizers.vq import VQ, VQConfig


def new_vq(seed: int = 0, **changes: Any) -> VQ:
    fields: dict[str, Any] = {
        "kind": "vq",
        "latent_channels": 3,
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "encoder_attention": False,
        "codebook_size": 6,
        "commitment_weight": 0.25,
        "revive_dead": True,
        **changes,
    }
    model = VQ(VQConfig.model_validate(fields))
    model.initialize(torch.Generator().manual_seed(seed))
    return model


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=rng) * 2 - 1


@pytest.fixture
def model(images: Tensor, rng: torch.Generator) -> VQ:
    """Return an autoencoder whose codes lie near some of the images' latents."""
    made = new_vq()
    with torch.no_grad():
        made.quantize.revive(made.encode(images), rng)
        made.quantize.embedding.weight.add_(0.01)
    return made


def forward(model: VQ, images: Tensor) -> tuple[Tensor, dict[str, Tensor], Codes]:
    reconstruction = model(images, ())
    return reconstruction.images, reconstruction.terms, reconstruction.codes


def test_vq_16_has_the_published_layout() -> None:
    with torch.device("meta"):
        model = VQ(
            VQConfig(
                kind="vq",
                latent_channels=8,
                base_channels=128,
                channel_multipliers=[1, 1, 2, 2, 4],
                num_res_blocks=2,
                encoder_attention=True,
                codebook_size=16384,
                commitment_weight=0.25,
                revive_dead=False,
            )
        )
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["quantize.embedding.weight"] == (16384, 8)
    assert shapes["encoder.conv_out.weight"] == (8, 512, 3, 3)  # not twice the channels
    assert shapes["quant_conv.weight"] == shapes["post_quant_conv.weight"] == (8, 8, 1, 1)
    assert (model.stride, model.latent_channels, model.codebook_size) == (16, 8, 16384)


def test_latents_are_those_before_the_codebook(model: VQ, images: Tensor) -> None:
    with torch.no_grad():
        latents = model.encode(images)
        assert torch.equal(latents, model.quant_conv(model.encoder(images)))
        distances = (latents[:, :, None] - model.quantize.embedding.weight.T[:, :, None, None]) ** 2
        assert torch.equal(model.quantise(latents), distances.sum(dim=1).argmin(dim=1))


def test_decoding_goes_by_the_nearest_codes(model: VQ, images: Tensor) -> None:
    with torch.no_grad():
        latents = model.encode(images)
        indices = model.quantise(latents)
        decoded = model.decode(latents)
        assert torch.equal(decoded, model.decode_indices(indices))
        assert torch.equal(decoded, model.decode(model.embed(indices)))
        direct = model.decoder(model.post_quant_conv(model.embed(indices)))
        assert torch.equal(decoded, direct)
    assert len(indices.unique()) == 6


def test_the_gradient_passes_the_codebook_straight_through(model: VQ, images: Tensor) -> None:
    """The encoder gets the gradient of the decoder at the codes, and the codebook none of it."""
    model(images, ()).images.square().sum().backward()
    assert model.quantize.embedding.weight.grad is None
    ours = {
        name: p.grad.clone() for name, p in model.encoder.named_parameters() if p.grad is not None
    }
    assert ours

    model.zero_grad()
    latents = model.encode(images)
    codes = model.embed(model.quantise(latents)).detach().requires_grad_()
    model.decoder(model.post_quant_conv(codes)).square().sum().backward()
    assert codes.grad is not None
    latents.backward(codes.grad)
    expected = {n: p.grad for n, p in model.encoder.named_parameters() if p.grad is not None}
    # Of biases before a norm the gradient is zero but for rounding.
    tolerance = 1e-5 * max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=tolerance), name


def test_the_decoder_sees_codes_in_training_too(model: VQ, images: Tensor) -> None:
    with torch.no_grad():
        decoded, _, codes = forward(model, images)
        assert torch.equal(codes.latents, model.encode(images))
        assert torch.equal(codes.indices, model.quantise(codes.latents))
        assert torch.allclose(decoded, model.decode_indices(codes.indices), atol=1e-5)


def test_terms_are_those_of_the_equation(model: VQ, images: Tensor) -> None:
    _, terms, codes = forward(model, images)
    square = (model.embed(codes.indices) - codes.latents).square().mean()
    assert terms.keys() == {"codebook", "commitment"}
    assert torch.allclose(terms["codebook"], 3 * 8 * 8 * square)
    assert torch.allclose(terms["commitment"], 0.25 * 3 * 8 * 8 * square)


def test_each_term_moves_what_it_should(model: VQ, images: Tensor) -> None:
    weight = model.quantize.embedding.weight
    conv = model.encoder.conv_out.weight
    codebook = torch.autograd.grad(forward(model, images)[1]["codebook"], [weight, conv],
                                   allow_unused=True)  # fmt: skip
    commitment = torch.autograd.grad(forward(model, images)[1]["commitment"], [weight, conv],
                                     allow_unused=True)  # fmt: skip
    assert codebook[0] is not None
    assert codebook[1] is None
    assert commitment[0] is None
    assert commitment[1] is not None
    # A code is pulled towards the mean of its latents.
    _, _, codes = forward(model, images)
    chosen = int(codes.indices.flatten()[0])
    mine = codes.latents.movedim(1, 3)[codes.indices == chosen].mean(dim=0)
    towards = (mine - weight[chosen]).detach()
    share = float((codes.indices == chosen).float().mean())
    assert torch.allclose(-codebook[0][chosen], 2 * 3 * 8 * 8 / 3 * share * towards, rtol=1e-3)


def test_a_step_revives_codes_in_the_average_too(model: VQ, rng: torch.Generator) -> None:
    average = new_vq(1)
    before = average.quantize.embedding.weight.detach().clone()
    model.quantize.unused_steps.copy_(torch.tensor([0, 0, 0, 0, 0, DEAD_AFTER]))
    latents = torch.randn(2, 3, 4, 4, generator=rng)
    codes = Codes(latents, torch.arange(32).reshape(2, 4, 4) % 5)
    measured = model.after_step(average, [codes, codes], rng)
    ours, theirs = model.quantize.embedding.weight, average.quantize.embedding.weight
    assert torch.equal(theirs[5], ours[5])
    assert torch.equal(theirs[:5], before[:5])
    assert float(measured["codebook_use"]) == pytest.approx(5 / 6)
    assert float(measured["perplexity"]) == pytest.approx(5, rel=0.01)


def test_without_revival_codes_stay(rng: torch.Generator) -> None:
    model = new_vq(revive_dead=False)
    before = model.quantize.embedding.weight.detach().clone()
    codes = Codes(torch.ones(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long))
    model.after_step(model, [codes], rng)
    assert torch.equal(model.quantize.embedding.weight, before)
    assert model.quantize.unused_steps.tolist() == [0, *[DEAD_AFTER + 1] * 5]


def test_initial_weights_depend_on_the_generator_alone() -> None:
    first = new_vq(0).state_dict()
    torch.rand(7)
    second, other = new_vq(0).state_dict(), new_vq(1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "quantize.embedding.weight"
    assert not torch.equal(first[name], other[name])
