"""The preset of MAR-B's released weights goes through the stages, with a file of random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_project as tiny
import torch
from PIL import Image
from ruamel.yaml import YAML
from torch import Tensor

from mar.latents.info import LatentsInfo
from mar.released.contents import read_generator, read_tokenizer
from mar.released.pickles import write_generator, write_tokenizer
from mar.sampling.store import SampleSet
from stages import export, generate, presets, previews


OFFICIAL: dict[str, dict[str, list[int]]] = json.loads(
    (tiny.ROOT / "tests/golden/official_state_dicts.json").read_text()
)


def random_tensors(name: str, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        key: torch.empty(shape).normal_(0, 0.02, generator=rng)
        for key, shape in OFFICIAL[name].items()
    }


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_mar_b_is_imported_sampled_and_exported(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = presets.resolve("imagenet256-mar-b-released-unguided", tiny.ROOT / "presets")
    params: dict[str, Any] = YAML(typ="safe").load(text)
    params["sample"] |= {"num_images": 2, "num_steps": 2}
    params["sample"]["head"] |= {"num_steps": 2, "x_0_bound": 3.0}
    params["evaluate"] |= {"is_splits": 1, "kid_subset_size": 2, "neighbours": 1}
    Path("params.yaml").write_text(json.dumps(params))
    kl16, mar = (Path(params[section]["path"]) for section in ("tokenizer", "generator"))
    tensors = random_tensors("kl16", 0)
    write_tokenizer(kl16, tensors)
    write_generator(mar, random_tensors("mar_base", 1), random_tensors("mar_base", 2))
    monkeypatch.setattr(previews, "SHOWN", 1)
    for stage in (
        "prepare",
        "train_tokenizer",
        "encode",
        "encode_text",
        "train_generator",
        "sample",
    ):
        tiny.run_stage(stage)

    metrics = json.loads((project / "out/train_generator/metrics.json").read_text())
    assert (metrics["steps"], metrics["parameters"]) == (0, 207_924_768)
    info = LatentsInfo.read(Path("out/encode/latents.json"))
    assert (info.latent_std, info.shape, info.num_classes) == (1 / 0.2325, [16, 16, 16], 1000)
    samples = SampleSet(Path("out/sample/samples"))
    assert (len(samples), samples.height, samples.width) == (2, 256, 256)
    assert not torch.equal(samples[0], samples[1])

    (project / "presets").symlink_to(tiny.ROOT / "presets")
    files = ["--weights", str(mar), "--tokenizer", str(kl16), "--out", "pictures"]
    head = [
        part
        for key in ("num_steps=2", "x_0_bound=3.0", "temperature=0.95")
        for part in ("--head", key)
    ]
    classes = ["--classes", "0", "goldfish", "--per-class", "1"]
    generate.main([*files, *head, *classes, "--steps", "2", "--guidance", "1"])
    for index, name in enumerate(["0000-tench", "0001-goldfish"]):
        picture = torch.tensor(np.asarray(Image.open(f"pictures/{name}.png")))
        assert torch.equal(picture.permute(2, 0, 1), samples[index])

    export.export(Path("again"))
    found = {"kl16": read_tokenizer(Path("again/kl16.ckpt"), None).tensors}
    expected = {"kl16": tensors}
    for which in ("model", "model_ema"):
        found[which] = read_generator(Path("again/checkpoint-last.pth"), None, which=which).tensors
        expected[which] = read_generator(mar, None, which=which).tensors
    for name, values in expected.items():
        assert found[name].keys() == values.keys()
        assert all(torch.equal(found[name][key], value) for key, value in values.items())
    for folder in (Path("again"), Path("out"), mar.parent):  # gigabytes are not left behind
        shutil.rmtree(folder)
