"""The autoencoder is LDM's: each layer does what it says, at any stride and width."""

import math
from typing import Any

import pytest
import torch

from mar.tokenizers.convolutional import Attention, Downsample, ResidualBlock, Upsample
from mar.tokenizers.kl import AutoencoderConfig, AutoencoderKL


def new_autoencoder(seed: int = 0, **changes: Any) -> AutoencoderKL:
    fields: dict[str, Any] = {
        "kind": "kl",
        "latent_channels": 3,
        "base_channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "encoder_attention": False,
        "kl_weight": 1e-6,
        **changes,
    }
    model = AutoencoderKL(AutoencoderConfig.model_validate(fields))
    model.initialize(torch.Generator().manual_seed(seed))
    return model


def test_kl_16_has_the_published_parameters() -> None:
    with torch.device("meta"):
        model = AutoencoderKL(
            AutoencoderConfig(
                kind="kl",
                latent_channels=16,
                base_channels=128,
                channel_multipliers=[1, 1, 2, 2, 4],
                num_res_blocks=2,
                encoder_attention=True,
                kl_weight=1e-6,
            )
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == 66_456_019
    assert model.config.stride == 16


def test_initial_weights_are_those_of_the_table() -> None:
    for name, module in new_autoencoder().named_modules():
        if isinstance(module, torch.nn.Conv2d):
            bound = 1 / math.sqrt(module.in_channels * module.kernel_size[0] ** 2)
            weight, bias = module.weight.detach(), module.bias
            assert float(weight.abs().max()) <= bound, name
            tolerance = 4 / math.sqrt(weight.numel())
            assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=tolerance), name
            assert bias is not None
            assert 0 < float(bias.detach().abs().max()) <= bound, name
        elif isinstance(module, torch.nn.GroupNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight)), name
            assert torch.equal(module.bias, torch.zeros_like(module.bias)), name
            assert module.eps == 1e-6, name


def test_initial_weights_depend_on_the_generator_alone() -> None:
    first = new_autoencoder(0).state_dict()
    torch.rand(7)
    second, other = new_autoencoder(0).state_dict(), new_autoencoder(1).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["quant_conv.weight"], other["quant_conv.weight"])


@pytest.mark.parametrize("multipliers", [[1], [1, 2], [1, 1, 3]])
def test_images_and_latents_differ_by_the_stride(
    multipliers: list[int], rng: torch.Generator
) -> None:
    model = new_autoencoder(channel_multipliers=multipliers)
    stride = 2 ** (len(multipliers) - 1)
    assert model.config.stride == stride
    images = torch.randn(2, 3, 8, 12, generator=rng)
    with torch.no_grad():
        moments = model.encode(images)
        decoded = model.decode(moments[:, :3])
    assert moments.shape == (2, 6, 8 // stride, 12 // stride)
    assert decoded.shape == images.shape
    assert float(decoded.std()) > 0.01


@pytest.mark.parametrize(("height", "width"), [(10, 8), (8, 9)])
def test_images_that_do_not_divide_are_refused(height: int, width: int) -> None:
    model = new_autoencoder(channel_multipliers=[1, 1, 1])
    with pytest.raises(ValueError, match=f"{height} x {width} pixels do not divide into latents"):
        model.encode(torch.zeros(1, 3, height, width))


def test_images_do_not_see_each_other(rng: torch.Generator) -> None:
    model = new_autoencoder(encoder_attention=True)
    images = torch.randn(3, 3, 8, 8, generator=rng)
    with torch.no_grad():
        together = model.decode(model.encode(images)[:, :3])
        alone = model.decode(model.encode(images[1:2])[:, :3])
    assert torch.allclose(alone, together[1:2], atol=1e-5)


def test_attention_follows_its_definition(rng: torch.Generator) -> None:
    attention = Attention(8)
    x = torch.randn(2, 8, 3, 4, generator=rng)
    with torch.no_grad():
        y = attention.norm(x)
        q, k, v = (layer(y).flatten(2) for layer in (attention.q, attention.k, attention.v))
        scores = torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(8)
        mixed = torch.einsum("bqk,bck->bcq", scores.softmax(dim=2), v).reshape(x.shape)
        assert torch.allclose(attention(x), x + attention.proj_out(mixed), atol=1e-5)


def test_downsampling_sees_one_row_and_column_of_zeros_right_and_below(
    rng: torch.Generator,
) -> None:
    layer = Downsample(1)
    x = torch.randn(1, 1, 4, 6, generator=rng)
    with torch.no_grad():
        layer.conv.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        layer.conv.weight.zero_()[..., 0, 0] = 1
        assert torch.equal(layer(x), x[:, :, ::2, ::2])
        layer.conv.weight.zero_()[..., 2, 2] = 1
        assert torch.equal(layer(x)[..., :-1, :-1], x[:, :, 2::2, 2::2])
        assert torch.equal(layer(x)[..., -1, :], torch.zeros(1, 1, 3))
        assert torch.equal(layer(x)[..., -1], torch.zeros(1, 1, 2))


def test_upsampling_repeats_pixels(rng: torch.Generator) -> None:
    layer = Upsample(1)
    x = torch.randn(1, 1, 2, 3, generator=rng)
    with torch.no_grad():
        layer.conv.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        layer.conv.weight.zero_()[..., 1, 1] = 1
        repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        assert torch.equal(layer(x), repeated)


@pytest.mark.parametrize("out_channels", [8, 12])
def test_a_block_adds_to_its_shortcut(out_channels: int, rng: torch.Generator) -> None:
    block = ResidualBlock(8, out_channels)
    x = torch.randn(1, 8, 4, 4, generator=rng)
    with torch.no_grad():
        block.conv2.weight.zero_()
        block.conv2.bias.zero_()  # pyright: ignore[reportOptionalMemberAccess]
        assert torch.equal(block(x), block.nin_shortcut(x))
    assert (block.nin_shortcut(x) is x) == (out_channels == 8)


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (32, 32), (48, 16), (6, 2), (5, 1)])
def test_norms_have_as_many_groups_as_divide_both_32_and_the_channels(
    channels: int, groups: int
) -> None:
    assert ResidualBlock(channels, channels).norm1.num_groups == groups


def test_encoder_attention_follows_each_block_of_the_last_level() -> None:
    changes = {"channel_multipliers": [1, 1, 2], "num_res_blocks": 2}
    without = set(new_autoencoder(**changes).state_dict())
    extra = set(new_autoencoder(**changes, encoder_attention=True).state_dict()) - without
    prefixes = {name.rsplit(".", 2)[0] for name in extra}
    assert prefixes == {"encoder.down.2.attn.0", "encoder.down.2.attn.1"}
