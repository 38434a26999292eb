"""Before a long run, a cache passes if its latents are those of the images that it names."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from mar.data.images import to_float
from mar.files import seal
from mar.latents.cache import LatentCache, measure_latents, write_latents
from mar.latents.info import LatentsInfo
from mar.latents.posterior import Posterior
from mar.tokenizers import comparison as preflight
from mar.tokenizers.comparison import (
    COMPARED,
    MAX_LATENT_ERROR,
    Content,
    choose,
    compare,
    rows_of_manifest,
)
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import TokenizerConfig, build_tokenizer, latent_shape


COUNT, SHARD = 20, 8
NAMES = [f"{index:02d}.png" for index in range(COUNT)]
LABELS = torch.arange(COUNT) % 3
AUTOENCODER = {
    "latent_channels": 3,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "encoder_attention": False,
}
SECTIONS = {
    "kl": {"kind": "kl", **AUTOENCODER, "kl_weight": 1e-6},
    "vq": {
        "kind": "vq",
        **AUTOENCODER,
        "codebook_size": 50,
        "commitment_weight": 0.25,
        "revive_dead": True,
    },
    "pixels": {"kind": "pixels"},
}
KINDS = list(SECTIONS)


def make_tokenizer(kind: str, seed: int = 0) -> Tokenizer:
    """Return a tokenizer whose pictures depend on their images."""
    adapter: TypeAdapter[TokenizerConfig] = TypeAdapter(TokenizerConfig)
    model = build_tokenizer(adapter.validate_python(SECTIONS[kind]))
    rng = torch.Generator().manual_seed(seed)
    model.initialize(rng)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in ("decoder.conv_out.weight", "encoder.conv_out.weight"):
                weight.mul_(5)
            elif name == "quantize.embedding.weight":
                weight.copy_(torch.randn(weight.shape, generator=rng))
    return model.requires_grad_(False).eval()


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """Return images of 4 x 4 plain squares."""
    squares = torch.randint(256, (COUNT, 3, 4, 4), generator=rng)
    return squares.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)


Flip = Callable[[Tensor], Tensor]


def write_cache(
    folder: Path, model: Tokenizer, images: Tensor, *, flip: Flip | None, names: list[str] = NAMES
) -> LatentCache:
    """Write the latents of images, and of mirror images if `flip` makes them, as `encode` does."""

    def encode(batch: Tensor) -> tuple[Tensor, Tensor | None]:
        moments = model.encode(to_float(batch))
        return moments, model.quantise(Posterior.of(moments, model.latent_channels).mean)

    for start in range(0, COUNT, SHARD):
        part = slice(start, start + SHARD)
        moments, codes = encode(images[part])
        mirrored, mirrored_codes = (None, None) if flip is None else encode(flip(images[part]))
        write_latents(
            folder / f"{start // SHARD:05d}.arrow",
            moments,
            mirrored,
            labels=LABELS[part],
            names=names[part],
            dtype="float16",
            codebook_size=model.codebook_size,
            code_indices=codes,
            mirrored_code_indices=mirrored_codes,
        )
    shape = latent_shape(model.config, 16)
    info = LatentsInfo(
        tokenizer="a" * 64,
        transform="",
        dtype="float16",
        flips=flip is not None,
        num_classes=3,
        class_counts=[],
        codebook_size=model.codebook_size,
        shape=[shape.channels, shape.height, shape.width],
        **(scale := measure_latents(folder, shape).scale()),
        latent_std=scale["std"],
    )
    return LatentCache(folder, info)


def mirror(images: Tensor) -> Tensor:
    return images.flip(3)


def find(
    model: Tokenizer,
    cache: LatentCache,
    images: Tensor,
    *,
    mirrored: bool = False,
    content: Content = "latents",
) -> preflight.Comparison:
    """Compare as the stage does: with the images that the cache names."""
    chosen = choose(COUNT)
    rows = rows_of_manifest(cache, NAMES, LABELS)[chosen]
    return compare(model, cache, chosen, images[rows], mirrored=mirrored, content=content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_right_cache_passes(tmp_path: Path, images: Tensor, kind: str, mirrored: bool) -> None:
    model = make_tokenizer(kind)
    cache = write_cache(tmp_path, model, images, flip=mirror)
    contents: list[Content] = ["latents", "codes"] if kind == "vq" else ["latents"]
    for content in contents:
        found = find(model, cache, images, mirrored=mirrored, content=content)
        found.check("images")
        assert float(found.latent_error.max()) < MAX_LATENT_ERROR[content] / 4
        originals = images[choose(COUNT)]
        assert torch.equal(found.originals, mirror(originals) if mirrored else originals)
        if kind != "vq":  # where rounding moves a latent to another code
            assert int((found.cached.int() - found.direct.int()).abs().max()) <= 2
        assert found.psnr()["psnr_cached"] == pytest.approx(found.psnr()["psnr_direct"], abs=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_under_names_in_another_order_are_refused(
    tmp_path: Path, images: Tensor, kind: str
) -> None:
    model = make_tokenizer(kind)
    names = [*NAMES[3:], *NAMES[:3]]  # 3 classes: the labels stay right
    cache = write_cache(tmp_path, model, images, flip=None, names=names)
    cache.labels = LABELS[[NAMES.index(name) for name in names]]
    found = find(model, cache, images)
    with pytest.raises(ValueError, match=r"does not hold the images that it names: 12 of 12 are"):
        found.check("images")


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_latents_of_another_tokenizer_are_refused(
    tmp_path: Path, images: Tensor, kind: str
) -> None:
    cache = write_cache(tmp_path, make_tokenizer(kind), images, flip=None)
    with pytest.raises(ValueError, match="12 of 12 are something else"):
        find(make_tokenizer(kind, seed=1), cache, images).check("images")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flip", [lambda x: x, lambda x: x.flip(2)])
def test_mirror_images_that_are_flipped_otherwise_are_refused(
    tmp_path: Path, images: Tensor, kind: str, flip: Flip
) -> None:
    model = make_tokenizer(kind)
    cache = write_cache(tmp_path, model, images, flip=flip)
    find(model, cache, images).check("images")
    with pytest.raises(ValueError, match="does not hold the mirror images that it names"):
        find(model, cache, images, mirrored=True).check("mirror images")


def write_sealed(path: Path, content: bytes | bytearray) -> None:
    """Write wrong content as if it were right."""
    with seal.sealing(path) as partial:
        partial.write_bytes(re.sub(rb"mar-sha256:[0-9a-f]{64}", seal.BLANK.encode(), content))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("byte", [0, 0x5A, 0xFF])  # zeros, large numbers, nan
def test_a_damaged_file_is_refused_by_naming_an_image_in_it(
    tmp_path: Path, images: Tensor, kind: str, byte: int
) -> None:
    model = make_tokenizer(kind)
    cache = write_cache(tmp_path, model, images, flip=None)
    path = tmp_path / "00001.arrow"
    content = bytearray(path.read_bytes())
    first = cache.moments(torch.arange(8, 16), torch.zeros(8, dtype=torch.bool)).half()
    values = first.numpy().tobytes()
    start = bytes(content).index(values)
    content[start : start + len(values)] = bytes([byte]) * len(values)
    write_sealed(path, content)

    found = find(model, LatentCache(tmp_path, cache.info), images)
    damaged = [name for name in found.names if 8 <= NAMES.index(name) < 16]
    with pytest.raises(ValueError, match=f"{len(damaged)} of 12 are .*else. {damaged[0]}: PSNR"):
        found.check("images")


def test_codes_are_compared_apart_from_latents(tmp_path: Path, images: Tensor) -> None:
    model = make_tokenizer("vq")
    cache = write_cache(tmp_path, model, images, flip=None)
    path = tmp_path / "00000.arrow"
    codes = cache.code_indices(torch.arange(8), torch.zeros(8, dtype=torch.bool))
    content = path.read_bytes()
    values = codes.numpy().astype("uint8").tobytes()
    for change, said in (
        (7, "cached codes, expected"),
        (200, "holds the code 2.., expected less"),
    ):
        changed = ((codes + change) % 256 if change > 50 else (codes + change) % 50).numpy()
        write_sealed(path, content.replace(values, changed.astype("uint8").tobytes()))
        damaged = LatentCache(tmp_path, cache.info)
        find(model, damaged, images).check("images")
        with pytest.raises(ValueError, match=said):
            find(model, damaged, images, content="codes").check("images")


def test_images_that_changed_are_refused(tmp_path: Path, images: Tensor) -> None:
    model = make_tokenizer("kl")
    cache = write_cache(tmp_path, model, images, flip=None)
    changed = images.clone()
    changed[COUNT - 1] = 255 - changed[COUNT - 1]
    with pytest.raises(ValueError, match=r"1 of 12 are something else. 19\.png"):
        find(model, cache, changed).check("images")


def test_a_poor_tokenizer_passes_with_a_warning(tmp_path: Path, images: Tensor) -> None:
    model = make_tokenizer("kl")
    found = find(model, write_cache(tmp_path / "a", model, images, flip=None), images)
    found.check("images")
    assert "hardly tells images apart" in (found.poor_tokenizer_warning() or "")  # it is untrained
    pixels = make_tokenizer("pixels")
    found = find(pixels, write_cache(tmp_path / "b", pixels, images, flip=None), images)
    assert found.poor_tokenizer_warning() is None
    assert found.psnr()["psnr_direct"] == float("inf")
    assert found.psnr()["psnr_shuffled"] < 12


def test_the_message_says_what_was_found_and_expected(tmp_path: Path, images: Tensor) -> None:
    model = make_tokenizer("pixels")
    found = find(model, write_cache(tmp_path, model, images, flip=None), images)
    broken = replace(found, cached=255 - found.cached, latent_error=torch.full((COMPARED,), 2.5))
    with pytest.raises(ValueError, match="12 of 12") as raised:
        broken.check("images")
    message = str(raised.value)
    psnr = preflight.psnr(broken.cached[0], broken.originals[0])
    assert f"PSNR {psnr:.1f} dB by way of its cached latents, expected inf dB" in message
    assert "differ by 2.5 of the mean square between two images, expected at most 0.03" in message
    lost = replace(found, cached=found.cached // 2)
    with pytest.raises(ValueError, match=r"PSNR 10\.9 dB, expected inf dB, .* decoder makes too"):
        lost.check("images")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"std": 3.0, "latent_std": 3.0},
            r"std is .*, expected about .*, that of 12 images in the",
        ),
        (
            {"std": 0.3, "latent_std": 0.3},
            r"std is .*, expected about .*, that of 12 images in the",
        ),
        (
            {"latent_std": 3.0},
            r"latent_std: the latents' standard deviation is .* expected about 1, with",
        ),
        (
            {"latent_std": 0.3},
            r"latent_std: the latents' standard deviation is .* expected about 1, with",
        ),
    ],
)
def test_a_scale_that_is_not_the_caches_is_refused(
    tmp_path: Path, images: Tensor, kind: str, changes: dict[str, float], said: str
) -> None:
    cache = write_cache(tmp_path, make_tokenizer(kind), images, flip=None)
    preflight.check_scale(cache, choose(COUNT))
    assert cache.info.std is not None
    wrong = {name: factor * cache.info.std for name, factor in changes.items()}
    cache.info = cache.info.model_copy(update=wrong)
    with pytest.raises(ValueError, match=rf"latents\.json: {said}"):
        preflight.check_scale(cache, choose(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_images_pass(tmp_path: Path, images: Tensor, kind: str) -> None:
    model = make_tokenizer(kind)
    same = images[:1].expand(COUNT, -1, -1, -1)
    cache = write_cache(tmp_path, model, same, flip=None)
    find(model, cache, same).check("images")
    with pytest.raises(ValueError, match="12 of 12 are something else"):
        find(model, cache, 255 - same).check("images")


def test_one_image_is_enough(tmp_path: Path, images: Tensor) -> None:
    model = make_tokenizer("kl")
    cache = write_cache(tmp_path, model, images, flip=None)
    compare(model, cache, [4], images[4:5], mirrored=False, content="latents").check("images")
    wrong = compare(model, cache, [4], images[5:6], mirrored=False, content="latents")
    with pytest.raises(ValueError, match="1 of 1 are something else"):
        wrong.check("images")


def test_names_lead_to_their_rows_and_labels(tmp_path: Path, images: Tensor) -> None:
    cache = write_cache(tmp_path, make_tokenizer("pixels"), images, flip=None)
    order = torch.arange(COUNT).flip(0)
    listed = [NAMES[index] for index in order]
    assert torch.equal(rows_of_manifest(cache, listed, LABELS[order]), order)
    assert torch.equal(rows_of_manifest(cache, NAMES, LABELS), torch.arange(COUNT))
    with pytest.raises(ValueError, match=r"holds 2 images that .* for training, first 00\.png"):
        rows_of_manifest(cache, NAMES[2:], LABELS[2:])
    other = LABELS.clone()
    other[5] = 1
    with pytest.raises(ValueError, match=r"05\.png has 2, expected 1"):
        rows_of_manifest(cache, NAMES, other)


@pytest.mark.parametrize("count", [1, 5, 12, 13, 1000])
def test_the_images_compared_are_spread_to_the_end(count: int) -> None:
    chosen = choose(count)
    assert len(set(chosen)) == min(count, COMPARED)
    assert chosen[-1] == count - 1
    gaps = [b - a for a, b in zip([-1, *chosen], chosen, strict=False)]
    assert max(gaps) - min(gaps) <= 1
