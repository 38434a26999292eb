"""Latents that training normalises and sampling decodes are those that the tokenizer made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from mar import latents, tokenizer
from mar.decoding import decode
from mar.images import to_float
from mar.latents import LatentCache, LatentsInfo
from mar.posterior import Posterior
from mar.tokenizer import TokenizerConfig
from mar.vq import VQ


SIZES = {
    "latent_channels": 3,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "encoder_attention": False,
}
CODEBOOK = {"codebook_size": 30, "commitment_weight": 0.25, "revive_dead": True}


@pytest.mark.parametrize(
    "section",
    [
        {"kind": "kl", **SIZES, "kl_weight": 1e-6},
        {"kind": "vq", **SIZES, **CODEBOOK},
        {"kind": "pixels"},
    ],
    ids=lambda section: section["kind"],
)
def test_what_training_sees_decodes_as_the_tokenizers_own_latents(
    tmp_path: Path, generator: torch.Generator, section: dict[str, Any]
) -> None:
    adapter: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)
    model = tokenizer.build(adapter.validate_python(section))
    model.initialize(generator)
    if isinstance(model, VQ):  # new codes are so small that the scale would not matter
        model.quantize.embedding.weight.data.normal_(generator=generator)
    images = torch.randint(256, (6, 3, 8, 8), generator=generator).to(torch.uint8)
    with torch.no_grad():
        moments = 3 * model.encode(to_float(images)) + 0.2  # of a scale and a mean of their own
    posterior = Posterior.of(moments, model.latent_channels)
    codes = model.quantise(posterior.mean)
    latents.write_shard(
        tmp_path / "0.arrow",
        moments,
        None,
        labels=torch.zeros(6, dtype=torch.long),
        names=list("abcdef"),
        dtype="float32",
        codebook_size=model.codebook_size,
        indices=codes,
    )
    shape = tokenizer.latent_shape(model.config, 8)
    info = LatentsInfo(
        tokenizer="",
        transform="",
        dtype="float32",
        flips=False,
        num_classes=1,
        codebook_size=model.codebook_size,
        shape=[shape.channels, shape.height, shape.width],
        **(scale := latents.measure(tmp_path, shape).scale()),
        divisor=scale["std"],
    )
    assert abs(info.divisor - 1) > 0.1
    cache = LatentCache(tmp_path, info)
    everything, plain = torch.arange(6), torch.zeros(6, dtype=torch.bool)
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    expected = posterior.sample(eps)
    normalised = cache.normalise(
        cache.moments(everything, plain), torch.Generator().manual_seed(1)
    )  # the same draw
    with torch.no_grad():
        own = model.decode(expected)
        assert torch.allclose(normalised * info.divisor, expected, atol=1e-5)
        assert torch.allclose(decode(model, normalised, info.divisor), own, atol=1e-4)
        assert not torch.allclose(decode(model, normalised, 1.5 * info.divisor), own, atol=1e-2)
        if isinstance(model, VQ):
            stored = cache.codes(everything, plain)[:, None]
            assert torch.equal(decode(model, stored, info.divisor), own)
