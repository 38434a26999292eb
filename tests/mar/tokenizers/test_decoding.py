"""Latents that training normalises and sampling decodes are those that the tokenizer made."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from mar.data.images import to_float
from mar.latents.cache import LatentCache, measure_latents, write_latents
from mar.latents.info import LatentsInfo
from mar.latents.posterior import Posterior
from mar.tokenizers.codec import decode_tokens
from mar.tokenizers.registry import TokenizerConfig, build_tokenizer, latent_shape
from mar.tokenizers.vq import VQ


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
    tmp_path: Path, rng: torch.Generator, section: dict[str, Any]
) -> None:
    adapter: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)
    model = build_tokenizer(adapter.validate_python(section))
    model.initialize(rng)
    if isinstance(model, VQ):  # new codes are so small that the scale would not matter
        model.quantize.embedding.weight.data.normal_(generator=rng)
    images = torch.randint(256, (6, 3, 8, 8), generator=rng).to(torch.uint8)
    with torch.no_grad():
        moments = 3 * model.encode(to_float(images)) + 0.2  # of a scale and a mean of their own
    posterior = Posterior.of(moments, model.latent_channels)
    codes = model.quantise(posterior.mean)
    write_latents(
        tmp_path / "0.arrow",
        moments,
        None,
        labels=torch.zeros(6, dtype=torch.long),
        names=list("abcdef"),
        dtype="float32",
        codebook_size=model.codebook_size,
        code_indices=codes,
    )
    shape = latent_shape(model.config, 8)
    info = LatentsInfo(
        tokenizer="",
        transform="",
        dtype="float32",
        flips=False,
        num_classes=1,
        class_counts=[],
        codebook_size=model.codebook_size,
        shape=[shape.channels, shape.height, shape.width],
        **(scale := measure_latents(tmp_path, shape).scale()),
        latent_std=scale["std"],
    )
    assert abs(info.latent_std - 1) > 0.1
    cache = LatentCache(tmp_path, info)
    everything, plain = torch.arange(6), torch.zeros(6, dtype=torch.bool)
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    expected = posterior.sample(eps)
    normalised = cache.normalise(
        cache.moments(everything, plain), torch.Generator().manual_seed(1)
    )  # the same draw
    with torch.no_grad():
        own = model.decode(expected)
        assert torch.allclose(normalised * info.latent_std, expected, atol=1e-5)
        assert torch.allclose(decode_tokens(model, normalised, info.latent_std), own, atol=1e-4)
        assert not torch.allclose(
            decode_tokens(model, normalised, 1.5 * info.latent_std), own, atol=1e-2
        )
        if isinstance(model, VQ):
            stored = cache.code_indices(everything, plain)[:, None]
            assert torch.equal(decode_tokens(model, stored, info.latent_std), own)
