"""Images encoded in parts are those encoded at once, and their codes those of their latents."""

import pytest
import torch

from mar.data.images import to_float
from mar.tokenizers.codec import concatenate, encode_images, encoder, precision_error
from mar.tokenizers.pixels import PixelsConfig
from mar.tokenizers.registry import TokenizerConfig, build_tokenizer
from mar.tokenizers.vq import VQConfig


VQ = VQConfig(
    kind="vq",
    latent_channels=3,
    base_channels=8,
    channel_multipliers=[1, 2],
    num_res_blocks=1,
    encoder_attention=False,
    codebook_size=12,
    commitment_weight=0.25,
    revive_dead=False,
)


@pytest.mark.parametrize("config", [VQ, PixelsConfig(kind="pixels")], ids=["vq", "pixels"])
def test_parts_joined_are_the_whole(config: TokenizerConfig, rng: torch.Generator) -> None:
    model = build_tokenizer(config)
    model.initialize(rng)
    images = torch.randint(256, (7, 3, 8, 8), generator=rng).to(torch.uint8)
    whole = encode_images(model, images)
    joined = concatenate([encode_images(model, part) for part in images.split(3)])
    assert torch.allclose(joined.moments, whole.moments, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(whole.moments, model.encode(to_float(images)), atol=1e-6)
        codes = model.quantise(whole.moments)
    if codes is None:
        assert whole.code_indices is None
        assert joined.code_indices is None
    else:
        assert whole.code_indices is not None
        assert joined.code_indices is not None
        assert torch.equal(whole.code_indices, codes)
        assert torch.equal(joined.code_indices, codes)


def test_arithmetic_of_the_encoder_moves_latents_a_little(rng: torch.Generator) -> None:
    model = build_tokenizer(VQ)
    model.initialize(rng)
    images = torch.randint(256, (7, 3, 8, 8), generator=rng).to(torch.uint8)
    rounded = encode_images(model, images, "bfloat16")
    assert rounded.moments.dtype == torch.float32
    with torch.no_grad():
        nearest = model.quantise(rounded.moments)
    assert rounded.code_indices is not None
    assert nearest is not None
    assert torch.equal(rounded.code_indices, nearest)  # found in float32
    exact = encode_images(model, images).moments
    error = (rounded.moments - exact).norm() / exact.norm()
    found = precision_error(model, images, "bfloat16")
    assert found == pytest.approx(float(error), rel=0.01)
    assert 2**-12 < found < 2**-4  # 8 bits, through a few layers
    assert precision_error(model, images, "float32") == 0


def test_latents_do_not_depend_on_the_number_of_threads(rng: torch.Generator) -> None:
    """Those of an image may depend on which images a thread encodes with it: it is given."""
    model = build_tokenizer(VQ)
    model.initialize(rng)
    images = torch.randint(256, (21, 3, 32, 32), generator=rng).to(torch.uint8)
    before = torch.get_num_threads()
    found: list[torch.Tensor] = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            with encoder(model, "float32") as encode:
                found.append(encode(images).moments)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.allclose(found[0], encode_images(model, images).moments, atol=1e-5)
