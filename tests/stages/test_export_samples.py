"""Samples of prompts are written as others read them, above all GenEval's evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mar.sampling.store import SampleSet, shard_path, write_shard
from mar.scenes.wanted import Prompt
from stages import export_samples


DOGS = '{"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}'
CAT = '{"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"}'


def write(folder: Path, prompts: list[str], geneval: list[str] | None = None) -> Tensor:
    """Write a shard of random images, and return them."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(prompts), 3, 4, 4), generator=rng, dtype=torch.uint8)
    labels = torch.zeros(len(prompts), dtype=torch.long)
    described: dict[str, Any] = {"first_index": 0, "num_classes": 1, "seed": 0}
    path = shard_path(folder, 0)
    write_shard(path, images, labels=labels, prompts=prompts, geneval=geneval, **described)
    return images.permute(0, 2, 3, 1)


def run(tmp_path: Path, *options: str) -> Path:
    target = tmp_path / "target"
    export_samples.main([str(target), "--samples", str(tmp_path / "samples"), *options])
    return target


def test_geneval_finds_each_prompt_with_its_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write(tmp_path / "samples", ["two dogs", "a cat"] * 2, [DOGS, CAT] * 2)
    assert SampleSet(tmp_path / "samples").geneval == [DOGS, CAT] * 2
    target = run(tmp_path, "--to", "geneval")
    assert sorted(path.name for path in target.iterdir()) == ["00000", "00001"]
    for number, line in enumerate([DOGS, CAT]):
        folder = target / f"{number:05d}"
        assert json.loads((folder / "metadata.jsonl").read_text()) == json.loads(line)
        names = sorted(path.name for path in (folder / "samples").iterdir())
        assert names == ["0000.png", "0001.png"]
        for place, name in enumerate(names):
            found = np.asarray(Image.open(folder / "samples" / name))
            assert np.array_equal(found, images[number + 2 * place])
    assert "4 images of 4 x 4 pixels and their prompts, as GenEval's" in capsys.readouterr().out


def test_what_scenes_must_show_is_read_from_their_captions(tmp_path: Path) -> None:
    write(tmp_path / "samples", ["a seven left of a two", "three sevens", "a seven left of a two"])
    target = run(tmp_path, "--to", "geneval")
    described = [json.loads((target / f"0000{n}/metadata.jsonl").read_text()) for n in range(2)]
    assert [Prompt.parse(each).tag for each in described] == ["position", "counting"]
    assert described[0]["include"][1] == {
        "class": "seven",
        "count": 1,
        "position": ["left of", 0],
    }
    assert len(list((target / "00000/samples").iterdir())) == 2


def test_images_that_nobody_knows_what_to_show_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "samples", ["a seven", "a dog"])
    with pytest.raises(SystemExit):
        run(tmp_path, "--to", "geneval")
    assert "1 of 2 prompts, as 'a dog', are neither of GenEval's file" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("name", ["a.npz", "A.ZIP", "full", "file.v1"])
@pytest.mark.parametrize("layout", ["png", "geneval"])
def test_a_target_that_is_no_new_folder_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str, name: str
) -> None:
    (tmp_path / "full/inner").mkdir(parents=True)
    (tmp_path / "file.v1").touch()
    with pytest.raises(SystemExit):
        export_samples.main([str(tmp_path / name), "--to", layout, "--samples", "not there"])
    is_file = name in ("a.npz", "A.ZIP")
    said = f"is the name of a file, expected that of a folder for --to {layout}" if is_file else (
        "exists and is not an empty folder")  # fmt: skip
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.v1", "full"]


def test_a_folder_in_the_place_of_the_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export_samples.main([str(tmp_path), "--to", "npz", "--samples", "not there"])
    assert "is a folder, expected the name of a file for --to npz" in capsys.readouterr().err


def test_the_layout_is_that_of_the_name_unless_one_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "samples", ["a seven"])
    assert (run(tmp_path) / "metadata.jsonl").is_file()
    assert "and their prompts" in capsys.readouterr().out
    export_samples.main([str(tmp_path / "a.NPZ"), "--samples", str(tmp_path / "samples")])
    assert "and their labels, which are 0, as they are from prompts" in capsys.readouterr().out
