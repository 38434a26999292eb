"""Images encoded in parts are those encoded at once, and their codes those of their latents."""

import pytest
import torch

from mar import tokenizer
from mar.encoding import encode, join
from mar.images import to_float
from mar.pixels import PixelsConfig
from mar.tokenizer import TokenizerConfig
from mar.vq import VQConfig


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
def test_parts_joined_are_the_whole(config: TokenizerConfig, generator: torch.Generator) -> None:
    model = tokenizer.build(config)
    model.initialize(generator)
    images = torch.randint(256, (7, 3, 8, 8), generator=generator).to(torch.uint8)
    whole = encode(model, images)
    joined = join([encode(model, part) for part in images.split(3)])
    assert torch.allclose(joined.moments, whole.moments, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(whole.moments, model.encode(to_float(images)), atol=1e-6)
        codes = model.quantise(whole.moments)
    if codes is None:
        assert whole.codes is None
        assert joined.codes is None
    else:
        assert whole.codes is not None
        assert joined.codes is not None
        assert torch.equal(whole.codes, codes)
        assert torch.equal(joined.codes, codes)
