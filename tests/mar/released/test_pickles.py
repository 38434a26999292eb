"""Released files are read without running what is in them, and written as the original reads them.

What is not such a file is refused by a message of one line that names it.
"""

import copy
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from argparse import Namespace
from collections import Counter, UserList, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mar.model.mar import MAR
from mar.released.contents import read_generator, read_tokenizer
from mar.released.generator import ReleasedGenerator
from mar.released.names import from_released, to_released
from mar.released.pickles import write_generator, write_tokenizer
from mar.released.shapes import check_generator, describe_generator
from mar.tokenizers.kl import AutoencoderConfig, AutoencoderKL


GOLDEN = Path(__file__).parents[2] / "golden"
OFFICIAL: dict[str, dict[str, list[int]]] = json.loads(
    (GOLDEN / "official_state_dicts.json").read_text()
)
SIZES = ["mar_base", "mar_large", "mar_huge"]
FORMATS = pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])


def tiny_autoencoder() -> AutoencoderKL:
    config = AutoencoderConfig(
        kind="kl",
        latent_channels=2,
        base_channels=4,
        channel_multipliers=[1, 2],
        num_res_blocks=1,
        encoder_attention=True,
        kl_weight=1e-6,
    )
    model = AutoencoderKL(config)
    model.initialize(torch.Generator().manual_seed(3))
    return model.eval()


def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return other weights of the same names, as the original's averages: parameters."""
    return {name: nn.Parameter(value + 1) for name, value in tensors.items()}


def generator_content(model: MAR) -> dict[str, object]:
    """Return all that a released generator's file has, after one step of the optimizer."""
    network = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters())
    torch.stack([parameter.sum() for parameter in network.parameters()]).sum().backward()
    optimizer.step()
    tensors = to_released(network.state_dict())
    return {
        "model": tensors,
        "model_ema": moved(tensors),
        "optimizer": optimizer.state_dict(),
        "epoch": 399,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "args": Namespace(model="mar_base", lr=8e-4, device="cuda", resume=None, online_eval=True),
    }


def save(path: Path, content: object, *, archive: bool = True) -> str:
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refuse(call: Callable[[], object], *words: str) -> None:
    """Check that a call ends in a message of one line with all the words."""
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        call()
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert len(message) < 400 + len(words[0])


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert type(found[name]) is Tensor
        assert not found[name].requires_grad
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


# Reading


@FORMATS
@pytest.mark.parametrize("which", ["model", "model_ema"])
def test_both_sets_of_weights_come_out_of_a_whole_released_file(
    tiny_model: MAR, tmp_path: Path, which: Any, archive: bool
) -> None:
    content: Any = generator_content(tiny_model)
    digest = save(tmp_path / "a.pth", content, archive=archive)
    assert_same(read_generator(tmp_path / "a.pth", digest, which=which).tensors, content[which])
    assert_same(
        read_generator(tmp_path / "a.pth", digest.upper(), which=which).tensors, content[which]
    )
    assert_same(read_generator(tmp_path / "a.pth", None, which=which).tensors, content[which])


@FORMATS
def test_the_weights_of_a_tokenizer_come_out_of_its_file(tmp_path: Path, archive: bool) -> None:
    tensors = tiny_autoencoder().state_dict()
    digest = save(tmp_path / "kl16.ckpt", {"model": tensors}, archive=archive)
    assert_same(read_tokenizer(tmp_path / "kl16.ckpt", digest).tensors, tensors)


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_released_names_and_shapes_come_out_of_a_file(tmp_path: Path, name: str) -> None:
    tensors = {  # each repeats one number, so that the file is small
        key: torch.tensor(float(index % 2048), dtype=torch.float16).expand(shape)
        for index, (key, shape) in enumerate(OFFICIAL[name].items())
    }
    path = tmp_path / "a.pth"
    save(path, {"model": tensors, "model_ema": tensors, "args": Namespace()})
    found = read_tokenizer(path, None).tensors if name == "kl16" else None
    found = found or read_generator(path, None, which="model_ema").tensors
    assert {key: list(value.shape) for key, value in found.items()} == OFFICIAL[name]
    assert all(value.dtype == torch.float16 for value in found.values())
    assert [value.flatten()[-1].item() for value in found.values()] == [
        index % 2048 for index in range(len(tensors))
    ]


def test_what_is_not_finite_is_read(tiny_model: MAR, tmp_path: Path) -> None:
    tensors = to_released(tiny_model.state_dict())
    tensors["fake_latent"] = torch.tensor([[float("nan"), float("inf")]])
    save(tmp_path / "a.pth", {"model": tensors})
    found = read_generator(tmp_path / "a.pth", None, which="model").tensors["fake_latent"]
    assert found.isnan().tolist() == [[True, False]]
    assert found.isinf().tolist() == [[False, True]]


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_the_ending_of_a_name_does_not_matter(tiny_model: MAR, tmp_path: Path, name: str) -> None:
    tensors = to_released(tiny_model.state_dict())
    save(tmp_path / name, {"model": tensors})
    assert_same(read_generator(tmp_path / name, None, which="model").tensors, tensors)


def test_changing_what_was_read_does_not_change_the_file(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    digest = save(path, {"model": to_released(tiny_model.state_dict())})
    for tensor in read_generator(path, digest, which="model").tensors.values():
        tensor.zero_()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


# Safety


class Copier:
    """Creates a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return shutil.copyfile, (__file__, str(self.path))


class Maker:
    """Creates a file from the state that unpickling gives it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, Path]) -> None:
        state["path"].touch()


@FORMATS
@pytest.mark.parametrize("place", ["model", "optimizer", "args", "callbacks"])
@pytest.mark.parametrize(("kind", "name"), [(Copier, "shutil.copyfile"), (Maker, "Maker")])
def test_nothing_in_a_file_is_run(
    tiny_model: MAR, tmp_path: Path, archive: bool, place: str, kind: Any, name: str
) -> None:
    """What stands in the place of a weight is refused, all else is left out."""
    path, created = tmp_path / "a.pth", tmp_path / "created"
    content: Any = generator_content(tiny_model)
    foreign = kind(created)
    content[place] = Namespace(lr=foreign) if place == "args" else {"fake_latent": foreign}
    digest = save(path, content, archive=archive)
    torch.load(path, weights_only=False)
    created.unlink()  # otherwise it is
    found = read_generator(path, digest, which="model_ema")
    assert not created.exists()
    assert_same(found.tensors, content["model_ema"])
    (remark,) = found.remarks
    assert remark.startswith(f"{path}: only tensors and plain values are read, and nothing is run")
    assert name in remark
    if place == "model":
        refuse(
            lambda: read_generator(path, digest, which="model"),
            f"{path}: model['fake_latent'] is a value of type ",
            f"{name}, expected a name and a tensor",
        )
        assert not created.exists()


class Builtin:
    """Asks for one of Python's own functions to be called."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@FORMATS
@pytest.mark.parametrize("function", [exec, eval, __import__, open, getattr, os.system])
def test_functions_of_python_are_not_called(
    tmp_path: Path, archive: bool, function: Callable[..., object]
) -> None:
    created = tmp_path / "created"
    argument = f"touch {created}" if function is os.system else f"open({str(created)!r}, 'w')"
    state: object = {"x": Builtin(function, argument), "y": Builtin(open, str(created), "w")}
    content = {"state_dict": tiny_autoencoder().state_dict(), "callbacks": state}
    save(tmp_path / "a.ckpt", content, archive=archive)
    found = read_tokenizer(tmp_path / "a.ckpt", None)
    assert not created.exists()
    assert_same(found.tensors, tiny_autoencoder().state_dict())


@FORMATS
def test_foreign_dictionaries_lists_and_modules_are_passed_over(
    tmp_path: Path, archive: bool
) -> None:
    content = {
        "state_dict": tiny_autoencoder().state_dict(),
        "hyper_parameters": defaultdict(list, {"a": [1], "b": [Path("x")]}),
        "best": np.float64(0.5),
        "names": UserList(["a", "b"]),
        "network": nn.Linear(2, 2),
        "kind": Counter("aab"),
        "method": {"a": 1}.get,
    }
    save(tmp_path / "a.ckpt", content, archive=archive)
    found = read_tokenizer(tmp_path / "a.ckpt", None)
    assert_same(found.tensors, tiny_autoencoder().state_dict())


def test_a_state_is_not_given_to_a_function_that_makes_tensors(tmp_path: Path) -> None:
    """A pickle could otherwise change the function for all that is read after it."""
    state = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    path = tmp_path / "a.pth"
    save(path, {"model": {}})
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, state if name.endswith("data.pkl") else content)
    refuse(lambda: read_tokenizer(path, None), f"{path} is damaged", "a function cannot have a st")


def test_a_torchscript_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"a/{name}", b"\x80\x02}.")
        archive.writestr("a/version", b"3\n")
    refuse(lambda: read_tokenizer(path, None), f"{path} is a TorchScript archive, expected a file")


def test_allowed_classes_are_allowed_for_one_file_only(tiny_model: MAR, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    save(tmp_path / "a.pth", generator_content(tiny_model))
    read_generator(tmp_path / "a.pth", None, which="model")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "a.pth", weights_only=True)


def test_another_digest_is_found_before_the_file_is_opened(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    digest = save(path, {"model": Copier(tmp_path / "created")})
    for expected in ("0" * 64, digest[:-1]):
        words = f"{path} has the SHA-256 {digest}, expected {expected}"
        refuse(
            lambda expected=expected: read_generator(path, expected, which="model").tensors, words
        )
        refuse(lambda expected=expected: read_tokenizer(path, expected).tensors, words)


# Other files


def html(path: Path) -> None:
    path.write_text("\n<!DOCTYPE html><html><head><title>Quota exceeded</title></head></html>")


def png(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")


def other_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"weight": [1.0]}}))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: None, "is missing"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.touch(), "is empty"),
        (html, "is a web page"),
        (png, "is a PNG image"),
        (other_pickle, "is something else (it begins with b'\\x80\\x04"),
    ],
)
def test_a_file_of_another_kind_is_told(
    tmp_path: Path, make: Callable[[Path], None], found: str
) -> None:
    path = tmp_path / "checkpoint-last.pth"
    make(path)
    words = [f"{path} {found}", ", expected a file of torch.save"]
    refuse(lambda: read_generator(path, None, which="model_ema").tensors, *words)
    refuse(lambda: read_tokenizer(path, None).tensors, *words)


def test_an_archive_of_something_else_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(b"PK\x05\x06" + bytes(18))  # empty
    refuse(lambda: read_tokenizer(path, None).tensors, f"{path} is something else")
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refuse(
        lambda: read_tokenizer(path, None).tensors,
        f"{path} is damaged or cut off, expected a whole",
    )


@FORMATS
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_file_is_told(
    tiny_model: MAR, tmp_path: Path, archive: bool, share: float
) -> None:
    path = tmp_path / "a.pth"
    save(path, generator_content(tiny_model), archive=archive)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuse(
        lambda: read_generator(path, None, which="model").tensors,
        f"{path} is damaged or cut off, expected a whole file of torch.save: ",
    )


@FORMATS
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_a_damaged_file_ends_in_a_message_or_in_tensors(
    tmp_path_factory: pytest.TempPathFactory, archive: bool, position: float, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"damaged_{archive}.pth"
    tensors = {"diffloss.a": torch.ones(3), "b": torch.zeros(2, dtype=torch.float16)}
    save(path, {"model": tensors, "args": Namespace(lr=1.0)}, archive=archive)
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] = value
    path.write_bytes(content)
    try:
        found = read_generator(path, None, which="model").tensors
    except ValueError as error:
        told = str(error)
    else:
        assert all(type(value) is Tensor for value in found.values())
        return
    assert told.startswith(str(path))
    assert "\n" not in told


# Other contents


def test_a_tokenizer_is_not_a_generator(tmp_path: Path) -> None:
    path = tmp_path / "kl16.ckpt"
    write_tokenizer(path, tiny_autoencoder().state_dict())
    words = f"{path} has the entries 'model', expected 'model_ema' of a generator"
    refuse(lambda: read_generator(path, None, which="model_ema").tensors, words)
    words = f"{path} holds a tokenizer, expected a generator"
    refuse(lambda: read_generator(path, None, which="model").tensors, words)


def test_a_generator_is_not_a_tokenizer(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    save(path, generator_content(tiny_model))
    refuse(
        lambda: read_tokenizer(path, None).tensors,
        f"{path} holds a generator, expected a tokenizer",
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], " holds a value of type list, expected a dictionary with 'model'"),
        ({}, " has the entries (none), expected 'model'"),
        (
            {f"blocks.{index}": torch.ones(1) for index in range(9)},
            "'blocks.3', 'blocks.4' and 4 more, expected 'model'",
        ),
        (
            {"model": torch.ones(1)},
            ": model is a value of type Tensor, expected a dictionary of tensors",
        ),
        (
            {"model": {"a": 1.5}},
            ": model['a'] is a value of type float, expected a name and a tensor",
        ),
        (
            {"model": {3: torch.ones(1)}},
            ": model[3] is a value of type Tensor, expected a name and a",
        ),
    ],
)
def test_another_content_is_told(tmp_path: Path, content: object, words: str) -> None:
    path = tmp_path / "a.pth"
    save(path, content)
    refuse(lambda: read_generator(path, None, which="model").tensors, str(path), words)
    refuse(lambda: read_tokenizer(path, None).tensors, str(path), words)


# Descriptions


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mar_base", "base (768 wide, 12 + 12 blocks, denoiser 6 x 1024, "),
        ("mar_large", "large (1024 wide, 16 + 16 blocks, denoiser 8 x 1280, "),
        ("mar_huge", "huge (1280 wide, 20 + 20 blocks, denoiser 12 x 1536, "),
    ],
)
def test_released_sizes_are_told_by_their_names(name: str, text: str) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in OFFICIAL[name].items()}
    shape = describe_generator(tensors)
    assert f"mar_{shape.size}" == name
    rest = "256 tokens of 16 channels, 64 condition tokens, 1000 classes)"
    assert str(shape) == text + rest


def test_a_custom_size_is_told_by_its_numbers(tiny_model: MAR) -> None:
    shape = describe_generator(to_released(tiny_model.state_dict()))
    assert shape.size is None
    assert str(shape) == (
        "a custom size (16 and 24 wide, 2 + 2 blocks, denoiser 2 x 20, "
        "12 tokens of 8 channels, 3 condition tokens, 5 classes)"
    )


def section(model: MAR, classes: str = "released") -> ReleasedGenerator:
    file = {"source": "released", "path": "mar.pth", "sha256": None, "weights": "model_ema"}
    return ReleasedGenerator.model_validate(
        {**model.config.model_dump(), **file, "classes": classes}
    )


def test_a_generator_of_another_size_is_told(tiny_model: MAR) -> None:
    tensors = {key: torch.empty(s, device="meta") for key, s in OFFICIAL["mar_large"].items()}
    refuse(
        lambda: check_generator(Path("mar.pth"), tensors, tiny_model, section(tiny_model)),
        "mar.pth holds large (1024 wide, 16 + 16 blocks",
        "1000 classes), expected a custom size (16 and 24 wide",
    )
    ours = to_released(tiny_model.state_dict())
    check_generator(Path("mar.pth"), ours, tiny_model, section(tiny_model))


def test_other_classes_are_refused_unless_they_are_to_be_new(tiny_model: MAR) -> None:
    tensors = to_released(tiny_model.state_dict())
    tensors["class_emb.weight"] = torch.zeros(9, 16)
    refuse(
        lambda: check_generator(Path("mar.pth"), tensors, tiny_model, section(tiny_model)),
        "generator.classes: mar.pth generates 9 classes, the data have 5; 'new' trains a class ",
        "got 'released'",
    )
    check_generator(Path("mar.pth"), tensors, tiny_model, section(tiny_model, "new"))
    del tensors["z_proj.weight"]
    refuse(
        lambda: check_generator(Path("mar.pth"), tensors, tiny_model, section(tiny_model, "new")),
        "mar.pth does not hold a whole generator: z_proj.weight is missing",
    )


def test_a_generator_in_parts_is_told(tiny_model: MAR) -> None:
    tensors = to_released(tiny_model.state_dict())
    tensors["z_proj.weight"] = torch.ones(16)
    words = "mar.pth does not hold a whole generator: "
    refuse(
        lambda: check_generator(Path("mar.pth"), tensors, tiny_model, section(tiny_model)),
        words + "z_proj.weight has shape (16,), expected 2 dimensions",
    )
    del tensors["z_proj.weight"]
    refuse(
        lambda: check_generator(Path("mar.pth"), tensors, tiny_model, section(tiny_model)),
        words + "z_proj.weight is missing",
    )


# Writing


def test_a_generator_comes_back_bit_by_bit(tiny_model: MAR, tmp_path: Path) -> None:
    content: Any = generator_content(tiny_model)
    save(tmp_path / "released.pth", content)
    written: dict[str, Mapping[str, Tensor]] = {}
    for which in ("model", "model_ema"):
        model = copy.deepcopy(tiny_model)
        found = read_generator(tmp_path / "released.pth", None, which=which).tensors
        model.load_state_dict(from_released(found))
        written[which] = to_released(model.state_dict())
    write_generator(tmp_path / "ours.pth", written["model"], written["model_ema"])
    again: Any = torch.load(tmp_path / "ours.pth", weights_only=True)  # without a list of ours
    assert list(again) == ["model", "model_ema"]
    for which in ("model", "model_ema"):
        expected = {name: value.detach() for name, value in content[which].items()}
        assert_same({name: again[which][name] for name in expected}, expected)
        assert again[which].keys() == expected.keys()


def test_a_tokenizer_comes_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = tiny_autoencoder().state_dict()
    write_tokenizer(tmp_path / "a.ckpt", tensors)
    model = tiny_autoencoder()
    nn.init.zeros_(model.decoder.conv_in.weight)
    model.load_state_dict(read_tokenizer(tmp_path / "a.ckpt", None).tensors)
    write_tokenizer(tmp_path / "b.ckpt", model.state_dict())
    assert_same(torch.load(tmp_path / "b.ckpt", weights_only=True)["model"], tensors)


def test_the_same_tensors_make_the_same_bytes(tiny_model: MAR, tmp_path: Path) -> None:
    tensors = to_released(tiny_model.state_dict())
    write_generator(tmp_path / "a.pth", tensors, moved(tensors))
    write_generator(tmp_path / "deep" / "b.pth", tensors, moved(tensors))
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "deep" / "b.pth").read_bytes()


def test_a_file_can_be_replaced_by_what_was_read_from_it(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    tensors = to_released(tiny_model.state_dict())
    write_generator(path, moved(tensors), tensors)
    before = path.read_bytes()
    found = [read_generator(path, None, which=which).tensors for which in ("model", "model_ema")]
    write_generator(path, *found)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_parts_of_tensors_are_written_without_the_rest(tmp_path: Path) -> None:
    whole = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    tensors = {
        "post_quant_conv.weight": whole[:6].reshape(2, 3).T,
        "post_quant_conv.bias": whole[5:8],
    }
    write_tokenizer(tmp_path / "a.ckpt", tensors)
    assert_same(read_tokenizer(tmp_path / "a.ckpt", None).tensors, tensors)
    assert (tmp_path / "a.ckpt").stat().st_size < 5000
