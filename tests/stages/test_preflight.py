"""A long training begins with a look at its latents, and stops if they are of other images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_project as tiny
import torch
from PIL import Image

from mar.files import seal
from mar.files.atomic import digest
from mar.latents.cache import LatentCache, write_latents
from mar.latents.info import LatentsInfo
from mar.tokenizers.kl import AutoencoderKL
from mar.tokenizers.pixels import Pixels, PixelsConfig
from mar.tokenizers.registry import load_tokenizer, save_tokenizer
from stages import encode, preflight, prepare
from stages.stage import Stage
from stages.tracking import Run


LATENTS = Path("out/encode/latents")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
MANIFEST = Path("out/prepare/manifest.parquet")


def test_the_picture_and_the_psnr_are_kept(finished: Path) -> None:
    record = (finished / "work/tracking/train_generator.jsonl").read_text().splitlines()
    found = next(event for event in map(json.loads, record) if "preflight/psnr_cached" in event)
    assert {"preflight/psnr_direct", "preflight/psnr_shuffled"} <= found.keys()
    direct = pytest.approx(found["preflight/psnr_direct"], abs=0.01)
    assert found["preflight/psnr_cached"] == direct
    with Image.open(finished / "work/previews/train_generator/preflight.png") as picture:
        assert picture.width > 12 * 64
        assert picture.height > 6 * 64  # images and mirror images, decoded ones, differences


def swap_names(project: Path) -> None:
    """Give every latent of a file the name and label of the one before."""
    rewrite(project, lambda names: [names[-1], *names[:-1]])


def forge_tokenizer(project: Path) -> None:
    """Put another tokenizer in place, with a cache that claims to be of it."""
    path = project / TOKENIZER
    other = load_tokenizer(path)
    assert isinstance(other, AutoencoderKL)
    other.initialize(torch.Generator().manual_seed(5))
    save_tokenizer(path, other)
    info = project / "out/encode/latents.json"
    seal.write_json(info, seal.read_json(info) | {"tokenizer": digest(path)})


def rewrite(project: Path, change: Callable[[list[str]], list[str]]) -> None:
    cache = LatentCache(project / LATENTS, LatentsInfo.read(project / "out/encode/latents.json"))
    for number, part in enumerate(torch.arange(len(cache)).split(500)):
        names = change([cache.names[index] for index in part])
        places = {name: index for index, name in enumerate(cache.names)}
        flags = torch.zeros(len(part), dtype=torch.bool)
        write_latents(
            project / LATENTS / f"{number:05d}.arrow",
            cache.moments(part, flags),
            cache.moments(part, ~flags),
            labels=cache.labels[[places[name] for name in names]],
            names=names,
            dtype="float16",
        )


@pytest.mark.parametrize("fault", [swap_names, forge_tokenizer])
def test_latents_of_other_images_stop_the_training(
    finished: Path, project: Path, fault: Callable[[Path], None]
) -> None:
    shutil.copytree(finished / "out", project / "out")
    shutil.rmtree(project / "out/train_generator")
    fault(project)
    with pytest.raises(ValueError, match=r"does not hold the images that it names: .* PSNR"):
        tiny.run_stage("train_generator")
    assert (project / "work/previews/train_generator/preflight.png").is_file()
    assert not (project / "out/train_generator").exists()


# Images that are files


def stage(name: str) -> Stage:
    return Stage(name, Path("out", name), Path("work"), torch.device("cpu"), Run(name))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of images, whose pixels are cached."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MAR_WORKERS", "0")
    for index in range(12):
        file = Path("photos", "ab"[index % 2], f"{index}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        values = np.random.default_rng(index).integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(values).save(file)
    data = {"source": "folder", "path": "photos", "image_size": 8, "held_out_fraction": 0.2}
    cached = {"dtype": "float16", "flips": True, "precision": "float32", "scale": None}
    sections = {
        "data": {**data, "max_unreadable": 0, "seed": 0},
        "latents": {**cached, "shard_images": 4, "batch_size": 4},
    }
    Path("params.yaml").write_text(json.dumps(sections))
    prepare.main(stage("prepare"))
    save_tokenizer(TOKENIZER, Pixels(PixelsConfig(kind="pixels")))
    encode.main(stage("encode"))
    return Path("photos")


def look() -> dict[str, float]:
    info = LatentsInfo.read(LATENTS.with_suffix(".json"))
    return preflight.check(
        stage("train_generator"),
        cache=LatentCache(LATENTS, info),
        weights=TOKENIZER,
        image_size=8,
    )


def test_random_numbers_are_left_as_they_were(photos: Path) -> None:
    before = torch.get_rng_state()
    assert look()["psnr_shuffled"] < 12  # the others are infinite
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("gone", [MANIFEST, Path("photos")])
def test_without_the_images_it_says_so_and_draws_the_latents(
    photos: Path, capsys: pytest.CaptureFixture[str], gone: Path
) -> None:
    gone.rename("away")
    assert look() == {}
    count = len(LatentCache(LATENTS, LatentsInfo.read(LATENTS.with_suffix(".json"))))
    expected = f"train_generator: {count} of {count} images are not on this machine, so"
    said = capsys.readouterr().err
    assert said.count(expected) == 1
    with Image.open("work/previews/train_generator/preflight.png") as picture:
        assert picture.height < 100  # one row


def test_what_there_is_of_the_images_is_compared(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = LatentsInfo.read(LATENTS.with_suffix(".json"))
    names = LatentCache(LATENTS, info).names
    for name in names[:3]:
        (photos / name).unlink()
    assert "psnr_shuffled" in look()
    assert f"3 of {len(names)} images are not on this machine" in capsys.readouterr().err
    changed, other = photos / names[4], photos / names[5]
    changed.write_bytes(other.read_bytes())
    with pytest.raises(ValueError, match=names[4]):  # by its size, or by its content
        look()


def test_a_scale_that_cannot_be_trained_on_stops_encode(photos: Path) -> None:
    for index, file in enumerate(sorted(photos.rglob("*.png"))):
        Image.new("RGB", (8, 8), (128, 128, 128)).save(file, compress_level=index % 10)
    prepare.main(stage("prepare"))
    shutil.rmtree("out/encode")
    shutil.rmtree("work")  # of other images, which have a folder of their own in a project
    with pytest.raises(
        ValueError, match=r"the latents' standard deviation is .*, expected 0.01 to"
    ):
        encode.main(stage("encode"))
    assert not Path("out/encode").exists()
