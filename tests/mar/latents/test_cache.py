"""The cache gives back each image's moments, codes and label, or names what does not fit."""

import re
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from mar.data.batches import batch_indices
from mar.files import seal
from mar.latents.cache import LatentCache, measure_latents, write_latents
from mar.latents.info import LatentsInfo
from mar.latents.posterior import LatentShape


SHAPE = LatentShape(channels=2, height=4, width=3)
COUNT = 11
LABELS = torch.arange(COUNT) % 4
NAMES = [f"class {index % 4}/{index}.png" for index in range(COUNT)]


@pytest.fixture
def moments(rng: torch.Generator) -> Tensor:
    """Return moments of the images, then of their mirror images."""
    return torch.randn(2, COUNT, 4, 4, 3, generator=rng)


def write_cache(
    folder: Path,
    moments: Tensor,
    *,
    dtype: str = "float16",
    flips: bool = True,
    codebook_size: int | None = None,
    codes: Tensor | None = None,
) -> None:
    """Write shards of 4, 1 and 6 images."""
    for number, (start, end) in enumerate([(0, 4), (4, 5), (5, COUNT)]):
        part = slice(start, end)
        write_latents(
            folder / f"{number:05d}.arrow",
            moments[0, part],
            moments[1, part] if flips else None,
            labels=LABELS[part],
            names=NAMES[part],
            dtype=dtype,
            codebook_size=codebook_size,
            code_indices=None if codes is None else codes[0, part],
            mirrored_code_indices=codes[1, part] if codes is not None and flips else None,
        )


def info(**changes: Any) -> LatentsInfo:
    fields: dict[str, Any] = {
        "tokenizer": "a" * 64,
        "transform": "ADM centre crop to 8 px",
        "dtype": "float16",
        "flips": True,
        "count": COUNT,
        "num_classes": 4,
        "class_counts": [],
        "codebook_size": None,
        "shape": [2, 4, 3],
        "latent_std": 3.0,
        "largest": 8.0,
        "mean": 0.0,
        "std": 2.0,
        "channel_mean": [0.0, 0.0],
        "channel_std": [2.0, 2.0],
        **changes,
    }
    return LatentsInfo.model_validate(fields)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_moments_come_back_to_the_precision_of_the_cache(
    tmp_path: Path, moments: Tensor, dtype: str
) -> None:
    write_cache(tmp_path, moments, dtype=dtype)
    cache = LatentCache(tmp_path, info(dtype=dtype))
    indices = torch.tensor([10, 0, 4, 3, 5, 4])
    mirrored = torch.tensor([False, True, False, False, True, True])
    expected = torch.where(mirrored[:, None, None, None], moments[1, indices], moments[0, indices])
    rounded = expected.half().float() if dtype == "float16" else expected
    assert torch.equal(cache.moments(indices, mirrored), rounded)
    assert len(cache) == COUNT
    assert torch.equal(cache.labels, LABELS)
    assert cache.names == NAMES


def test_moments_stay_in_the_file_until_they_are_asked_for(tmp_path: Path, moments: Tensor) -> None:
    write_cache(tmp_path, moments)
    cache = LatentCache(tmp_path, info())
    path = tmp_path / "00002.arrow"
    with path.open("r+b") as file:  # the same file, whose content is now another
        file.write(bytes(path.stat().st_size))
    read = cache.moments(torch.tensor([3, 8]), torch.tensor([False, False]))
    assert torch.equal(read[0], moments[0, 3].half().float())
    assert torch.equal(read[1], torch.zeros(4, 4, 3))


def test_the_same_moments_make_the_same_bytes(tmp_path: Path, moments: Tensor) -> None:
    write_cache(tmp_path / "a", moments)
    write_cache(tmp_path / "b", moments)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_measured_scale_is_that_of_the_sampled_posterior(tmp_path: Path, moments: Tensor) -> None:
    write_cache(tmp_path, moments, dtype="float32")
    values = moments[0].double().numpy()
    mean, variance = values[:, :2], np.exp(values[:, 2:])
    measured = measure_latents(tmp_path, SHAPE).scale()
    assert measured["count"] == COUNT
    assert measured["mean"] == pytest.approx(mean.mean(), abs=1e-6)
    assert measured["std"] == pytest.approx(np.sqrt(mean.var() + variance.mean()), rel=1e-6)
    for channel in range(2):
        expected = np.sqrt(mean[:, channel].var() + variance[:, channel].mean())
        assert measured["channel_std"][channel] == pytest.approx(expected, rel=1e-6)
        assert measured["channel_mean"][channel] == pytest.approx(mean[:, channel].mean(), abs=1e-6)


def test_normalised_samples_have_a_std_of_one(tmp_path: Path, rng: torch.Generator) -> None:
    moments = torch.randn(2, COUNT, 4, 4, 3, generator=rng) + 1.0
    write_cache(tmp_path, moments, dtype="float32")
    measured = measure_latents(tmp_path, SHAPE).scale()
    std, mean = measured["std"], measured["mean"]
    cache = LatentCache(tmp_path, info(**measured, latent_std=std))
    everything = torch.arange(COUNT).repeat(300)
    drawn = cache.normalise(cache.moments(everything, torch.zeros(len(everything)).bool()), rng)
    assert float(drawn.std()) == pytest.approx(1, abs=0.01)
    assert float(drawn.mean()) == pytest.approx(mean / std, abs=0.01)
    assert mean > 0.5  # it is left in


def test_normalised_samples_depend_on_the_generator_alone(tmp_path: Path, moments: Tensor) -> None:
    write_cache(tmp_path, moments)
    cache = LatentCache(tmp_path, info())
    first, second, other = (
        cache.normalise(moments[0], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# Latents without a variance, and their codes


@pytest.fixture
def latents(rng: torch.Generator) -> Tensor:
    """Return latents of the images, then of their mirror images."""
    return torch.randn(2, COUNT, 2, 4, 3, generator=rng) + 1.0


def draw_codes(codebook_size: int, rng: torch.Generator) -> Tensor:
    """Return codes of the images, then of their mirror images, with the first and the last."""
    codes = torch.randint(codebook_size, (2, COUNT, 4, 3), generator=rng)
    codes[:, 0, 0, 0], codes[:, 0, 0, 1] = 0, codebook_size - 1
    return codes


def test_latents_without_a_variance_are_cached_as_they_are(
    tmp_path: Path, latents: Tensor, rng: torch.Generator
) -> None:
    write_cache(tmp_path, latents, dtype="float32")
    measured = measure_latents(tmp_path, SHAPE).scale()
    assert measured["std"] == pytest.approx(float(latents[0].std(correction=0)), rel=1e-5)
    assert measured["mean"] == pytest.approx(float(latents[0].mean()), rel=1e-5)
    cache = LatentCache(tmp_path, info(dtype="float32", **measured))
    mirrored = torch.arange(COUNT) % 2 == 1
    read = cache.moments(torch.arange(COUNT), mirrored)
    expected = torch.where(mirrored[:, None, None, None], latents[1], latents[0])
    assert torch.equal(read, expected)
    assert torch.equal(cache.normalise(read, rng), expected / 3.0)


@pytest.mark.parametrize(
    ("codebook_size", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_codes_come_back_from_the_smallest_integers_that_hold_them(
    tmp_path: Path, latents: Tensor, rng: torch.Generator, codebook_size: int, dtype: str
) -> None:
    codes = draw_codes(codebook_size, rng)
    write_cache(tmp_path, latents, codebook_size=codebook_size, codes=codes)
    cache = LatentCache(tmp_path, info(codebook_size=codebook_size))
    indices = torch.tensor([10, 0, 4, 3, 0, 4])
    mirrored = torch.tensor([False, True, False, False, False, True])
    expected = torch.where(mirrored[:, None, None], codes[1, indices], codes[0, indices])
    read = cache.code_indices(indices, mirrored)
    assert read.dtype == torch.int64
    assert torch.equal(read, expected)
    schema = pa.ipc.open_file(pa.memory_map(str(tmp_path / "00000.arrow"))).schema
    for name in ("code_indices", "mirrored_code_indices"):
        assert str(schema.field(name).type.value_type) == dtype


def test_batches_of_codes_are_of_the_images_and_flips_of_those_of_moments(
    tmp_path: Path, latents: Tensor, rng: torch.Generator
) -> None:
    codes = draw_codes(1000, rng)
    write_cache(tmp_path, latents, dtype="float32", codebook_size=1000, codes=codes)
    cache = LatentCache(tmp_path, info(dtype="float32", codebook_size=1000))
    pairs = zip(
        cache.batches(4, seed=3, first_step=2),
        cache.batches(4, seed=3, first_step=2, content="code_indices"),
        strict=True,
    )
    kinds: set[bool] = set()
    for step, ((moments, labels), (read, same)) in enumerate(islice(pairs, 20), 2):
        indices = batch_indices(COUNT, 4, seed=3, step=step)
        assert torch.equal(labels, same)
        for row, code, index in zip(moments, read, indices, strict=True):
            mirrored = torch.equal(row, latents[1, index])
            assert torch.equal(code, codes[int(mirrored), index])
            kinds.add(mirrored)
    assert kinds == {False, True}


def test_codes_of_a_cache_without_a_codebook_are_refused(tmp_path: Path, moments: Tensor) -> None:
    write_cache(tmp_path, moments)
    cache = LatentCache(tmp_path, info())
    expected = "the latent cache holds no indices: tokenizer.kind has no codebook, expected 'vq'"
    with pytest.raises(ValueError, match=re.escape(expected)):
        cache.batches(4, seed=3, first_step=0, content="code_indices")


# Batches


def take(cache: LatentCache, count: int, *, first_step: int = 0) -> list[tuple[Tensor, Tensor]]:
    batches = cache.batches(4, seed=3, first_step=first_step)
    taken = list(islice(batches, count))
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]
    return taken


def test_resumed_batches_are_those_of_an_undisturbed_run(tmp_path: Path, moments: Tensor) -> None:
    write_cache(tmp_path, moments)
    cache = LatentCache(tmp_path, info())
    for resumed, whole in zip(take(cache, 3, first_step=4), take(cache, 7)[4:], strict=True):
        assert torch.equal(resumed[0], whole[0])
        assert torch.equal(resumed[1], whole[1])


def test_batches_hold_whole_epochs_and_about_half_of_them_mirrored(
    tmp_path: Path, moments: Tensor
) -> None:
    write_cache(tmp_path, moments, dtype="float32")
    cache = LatentCache(tmp_path, info(dtype="float32"))
    mirrored: list[tuple[bool, ...]] = []
    for step, (batch, labels) in enumerate(take(cache, 50)):
        indices = batch_indices(COUNT, 4, seed=3, step=step)
        assert torch.equal(labels, LABELS[indices])
        for row, index in zip(batch, indices, strict=True):
            assert torch.equal(row, moments[0, index]) or torch.equal(row, moments[1, index])
        found = zip(batch, moments[1, indices], strict=True)
        mirrored.append(tuple(torch.equal(row, mirror) for row, mirror in found))
    assert 70 < sum(map(sum, mirrored)) < 130
    assert len(set(mirrored)) > 10  # of 16; each step has a choice of its own


@pytest.mark.parametrize("content", ["moments", "code_indices"])
@pytest.mark.parametrize("on_device", [False, True])
def test_shares_of_processes_make_up_the_batches_of_one(
    tmp_path: Path, latents: Tensor, rng: torch.Generator, content: Any, on_device: bool
) -> None:
    """Held on the device or read from the files, whole or in shares: the same batches."""
    codes = draw_codes(40_000, rng)
    write_cache(tmp_path, latents, codebook_size=40_000, codes=codes)
    whole = LatentCache(tmp_path, info(codebook_size=40_000), on_device=False)
    shared = LatentCache(tmp_path, info(codebook_size=40_000), on_device=on_device)
    options: dict[str, Any] = {"seed": 3, "first_step": 2, "content": content}
    parts = [
        shared.batches(6, part=part, device=torch.device("cpu"), **options)
        for part in (slice(0, 2), slice(2, 4), slice(4, 6))
    ]
    batches = zip(whole.batches(6, **options), zip(*parts, strict=True), strict=True)
    for (values, labels), shares in islice(batches, 40):  # several windows
        assert torch.equal(values, torch.cat([share for share, _ in shares]))
        assert torch.equal(labels, torch.cat([share for _, share in shares]))
        assert len(values) == 6


def test_a_cache_without_mirror_images_gives_none(tmp_path: Path, moments: Tensor) -> None:
    write_cache(tmp_path, moments, dtype="float32", flips=False)
    cache = LatentCache(tmp_path, info(dtype="float32", flips=False))
    for step, (batch, _) in enumerate(take(cache, 5)):
        assert torch.equal(batch, moments[0, batch_indices(COUNT, 4, seed=3, step=step)])


# What does not fit


def test_a_cache_that_differs_is_refused_by_naming_exactly_what_does() -> None:
    found = info()
    found.check({"tokenizer": "a" * 64, "dtype": "float16", "flips": True})
    with pytest.raises(ValueError, match="the latent cache does not fit") as raised:
        found.check(
            {
                "tokenizer": "b" * 64,
                "transform": "ADM centre crop to 8 px",
                "dtype": "float32",
                "flips": True,
            }
        )
    assert str(raised.value).split(": ", 1)[1].split("; ") == [
        f"tokenizer is '{'a' * 64}', expected '{'b' * 64}'",
        "dtype is 'float16', expected 'float32'",
    ]


def test_the_description_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "latents.json"
    info().write(path)
    assert LatentsInfo.read(path) == info()
    assert LatentsInfo.read(path).latent == SHAPE


def test_moments_too_large_for_the_cache_name_the_image(tmp_path: Path, moments: Tensor) -> None:
    moments[0, 6, 1, 2, 0] = -70_000
    expected = r"class 2/6\.png: its moments reach 70000, which is not finite as float16"
    with pytest.raises(ValueError, match=expected):
        write_cache(tmp_path, moments)
    assert not (tmp_path / "00002.arrow").exists()
    write_cache(tmp_path, moments, dtype="float32")


def test_moments_of_mirror_images_are_checked_too(tmp_path: Path, moments: Tensor) -> None:
    moments[1, 4] = torch.nan
    with pytest.raises(ValueError, match=r"class 0/4\.png: its moments reach nan"):
        write_cache(tmp_path, moments, dtype="float32")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_largest_latent_of_each_image_is_that_of_its_means(
    tmp_path: Path, moments: Tensor, dtype: str
) -> None:
    moments[0, 7, 3] = -5_000  # a log variance
    moments[1, 3, 1, 2, 2] = -60_000
    write_cache(tmp_path, moments, dtype=dtype)
    largest = LatentCache(tmp_path, info(dtype=dtype)).largest()
    expected = moments[:, :, :2].abs().flatten(2).amax(dim=2).amax(dim=0)
    assert torch.allclose(largest, expected, rtol=1e-3)
    assert largest.argmax() == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", ["moments", "mirrored"])
def test_latents_that_are_not_finite_are_named(
    tmp_path: Path, moments: Tensor, value: float, column: str
) -> None:
    """Nothing of ours writes them; a cache may be of another program."""
    write_cache(tmp_path, moments)
    path = tmp_path / "00002.arrow"
    table = pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()
    rows = np.stack(table[column].to_numpy())
    rows[1, 30] = value
    changed = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = table.set_column(table.column_names.index(column), column, changed)
    table = table.replace_schema_metadata({"seal": seal.BLANK})
    with seal.sealing(path) as partial, pa.ipc.new_file(partial, table.schema) as writer:
        writer.write_table(table)
    expected = r"00002\.arrow: the latents of class 2/6\.png hold nan or infinity; the cache"
    with pytest.raises(ValueError, match=expected):
        LatentCache(tmp_path, info()).largest()


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, moments: Tensor, share: float) -> None:
    write_cache(tmp_path, moments)
    path = tmp_path / "00001.arrow"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"00001\.arrow (is damaged|holds no digest)"):
        LatentCache(tmp_path, info())


@pytest.mark.parametrize(("missing", "left"), [("00000.arrow", 7), ("00002.arrow", 5)])
def test_a_missing_file_is_noticed(
    tmp_path: Path, moments: Tensor, missing: str, left: int
) -> None:
    write_cache(tmp_path, moments)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"holds {left} latents, latents.json says {COUNT}"):
        LatentCache(tmp_path, info())


@pytest.mark.parametrize("content", [{}, {"tokenizer": 1}])
def test_a_description_of_something_else_is_named(tmp_path: Path, content: dict[str, Any]) -> None:
    seal.write_json(tmp_path / "latents.json", content)
    with pytest.raises(ValueError, match=r"latents\.json does not describe a latent cache"):
        LatentsInfo.read(tmp_path / "latents.json")
