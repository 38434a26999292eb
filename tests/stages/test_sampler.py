"""Five lines of Python draw what the programs draw; mistakes are named before anything is drawn."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mar.tokenizers.codec import reconstruct
from stages import generate
from stages.sampler import Progress, Sampler, load


@pytest.fixture(scope="module")
def sampler(finished: Path) -> Sampler:
    return load(finished / "out")


def test_images_are_those_of_the_program(
    sampler: Sampler, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = sampler.sample(["3", 7], seed=5, guidance_scale=3.0, head={"num_steps": 3})
    assert (images.shape, images.dtype) == ((2, 8, 8, 3), np.uint8)
    monkeypatch.chdir(finished)
    options = ["--classes", "3", "7", "--per-class", "1", "--seed", "5", "--guidance", "3"]
    generate.main([*options, "--head", "num_steps=3", "--out", str(tmp_path / "pictures")])
    for image, name in zip(images, ("0000-3.png", "0001-7.png"), strict=True):
        assert np.array_equal(image, np.asarray(Image.open(tmp_path / "pictures" / name)))


def test_a_class_is_a_name_or_a_number_of_any_integer_type(sampler: Sampler) -> None:
    for classes in (
        ["3", 7],
        (3, "7"),
        np.array([3, 7]),
        torch.tensor([3, 7]),
        np.array(["3", "7"]),
    ):
        given = sampler.given(classes)  # pyright: ignore[reportArgumentType]
        assert given.tokens.tolist() == [3, 7]
        assert given.names == ["3", "7"]


def test_blank_images_are_warned_of(sampler: Sampler) -> None:
    tokenizer = copy.deepcopy(sampler.weights.tokenizer)
    for parameter in tokenizer.decoder.conv_out.parameters():  # pyright: ignore[reportAttributeAccessIssue]
        parameter.zero_()
    blank = replace(sampler, weights=replace(sampler.weights, tokenizer=tokenizer))
    with pytest.warns(UserWarning, match="^of 2 images, 2 are of one colour") as found:
        images = blank.sample([1, 2])
    assert found[0].filename == __file__  # the caller's line
    with pytest.warns(UserWarning, match="^of 2 images, 2 are of one colour"):
        blank.inpaint(images, np.ones((8, 8), dtype=bool), [1, 2])


def test_images_do_not_depend_on_the_batch(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampler.sample(list("01234"))
    monkeypatch.setenv("MAR_SAMPLE_BATCH", "2")
    done: list[float] = []
    parts = sampler.sample(list("01234"), on_step=lambda step: done.append(step.images))
    assert np.abs(whole.astype(int) - parts).max() <= 1  # batches round sums otherwise
    assert done == sorted(done)
    assert done[-1] == 5


def test_a_picture_on_the_way_is_grey_where_nothing_is_drawn_yet(sampler: Sampler) -> None:
    steps: list[tuple[int, np.ndarray]] = []

    def on_step(step: Progress) -> None:
        steps.append((step.num_known, step.picture().permute(0, 2, 3, 1).numpy()))

    images = sampler.sample(["1", "2"], on_step=on_step)
    side = 8 // sampler.weights.mar.rows  # pixels of a token
    for num_known, picture in steps:
        tokens = picture.reshape(2, 8 // side, side, 8 // side, side, 3)
        grey = (tokens == 128).all(axis=(2, 4, 5))  # (B, h, w)
        assert (grey.sum(axis=(1, 2)) == sampler.weights.mar.num_tokens - num_known).all()
    assert len(steps) == 4
    assert np.array_equal(steps[-1][1], images)


def test_inpainting_nothing_is_a_round_trip_and_inpainting_all_a_generation(
    sampler: Sampler,
) -> None:
    images = sampler.sample(["3", "3"])
    hidden = np.zeros((8, 8), dtype=bool)
    kept = sampler.inpaint(images, hidden, ["3", "8"], seed=4)
    originals = torch.from_numpy(images).permute(0, 3, 1, 2)
    expected = reconstruct(sampler.weights.tokenizer, originals).permute(0, 2, 3, 1).numpy()
    assert np.abs(kept.astype(int) - expected).max() <= 1  # latents are divided and multiplied
    everything = sampler.inpaint(images, ~hidden, ["3", "8"], seed=4)
    assert np.array_equal(everything, sampler.sample(["3", "8"], seed=4))


IMAGES = np.zeros((2, 8, 8, 3), dtype=np.uint8)
HIDDEN = np.ones((8, 8), dtype=bool)


@pytest.mark.parametrize(
    ("images", "hidden", "classes", "said"),
    [
        (IMAGES[:, :4], HIDDEN, [1, 2], r"images must be uint8 of shape \(B, 8, 8, 3\), got uint8"),
        (IMAGES / 255, HIDDEN, [1, 2], "images must be uint8 .*, got float64 of shape"),
        (IMAGES, HIDDEN[:4], [1, 2], r"hidden must be bool of shape \(8, 8\), got bool of .*4, 8"),
        (IMAGES, HIDDEN * 255, [1, 2], "hidden must be bool of .*, got int"),
        (IMAGES, HIDDEN, [1], "got 2 images and 1 classes"),
    ],
)
def test_what_cannot_be_inpainted_is_refused(
    sampler: Sampler, images: np.ndarray, hidden: np.ndarray, classes: list[int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        sampler.inpaint(images, hidden, classes)


@pytest.mark.parametrize(
    ("classes", "settings", "said"),
    [
        (["eleven"], {}, "classes: 'eleven' is neither the name of a class nor a number"),
        ("37", {}, "classes: must be a list of names or numbers, got '37'"),
        ([], {}, r"classes: must be a list of names or numbers, got \[\]"),
        (7, {}, "classes: must be a list of names or numbers, got 7"),
        ([1.5], {}, "classes: 1.5 is neither the name of a class nor a whole number"),
        ([True], {}, "classes: True is neither the name of a class nor a number"),
        ([1], {"head": 3}, "settings: sample.head must hold keys of its own, got 3"),
        ([1], {"guidence_scale": 2.0}, "no 'guidence_scale'; did you mean 'guidance_scale'"),
        ([1], {"num_images": 2}, "sample has seed, num_steps, .*, head, and no 'num_images'"),
        ([1], {"head": {"steps": 3}}, "sample.head has num_steps, .*, and no 'steps'"),
        ([1], {"seed": "one"}, "settings: sample.seed: .* integer, got 'one'"),
        ([1], {"num_steps": 99}, "sample.num_steps: must be 1 to 16"),
        ([1], {"order": "confidence"}, "sample.order: 'confidence' needs probabilities"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    sampler: Sampler, classes: list[int | str], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        sampler.sample(classes, **settings)


def test_weights_and_devices_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.safetensors is missing; `dvc repro"):
        load(tmp_path)
    (tmp_path / "out").mkdir()
    said = r"outt is not a folder; did you mean 'out'\?; expected the outputs of a project, which"
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "outt")
    with pytest.raises(ValueError, match=r"is missing; did you mean '\S+/out'\?; `dvc repro"):
        load(tmp_path)
    with pytest.raises(ValueError, match=r"elsewhere is not a folder; expected the outputs of a"):
        load(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="go together, got one of them"):
        load(generator="checkpoint-last.pth")
    with pytest.raises(ValueError, match="device: cannot use 'gpu': "):
        load(tmp_path, device="gpu")
    with pytest.raises(ValueError, match=r"no-generator.pth"):
        load(generator=tmp_path / "no-generator.pth", tokenizer=tmp_path / "no-tokenizer.ckpt")
