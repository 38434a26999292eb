"""Files that are not whole, not safe or not ours are refused; so are exports without a layout."""

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_project as tiny
import torch
from pydantic import TypeAdapter
from released_project import KL16, MAR_FILE, released_params, write_params

from mar.files import atomic, seal
from mar.latents.posterior import LatentShape
from mar.model.mar import MAR, GeneratorConfig
from mar.model.saved import save_mar
from mar.tokenizers.registry import TokenizerConfig, build_tokenizer, save_tokenizer
from stages import check, export


Change = Callable[[dict[str, Any]], object]


# Files that are refused


class Foreign:
    """What no released file has."""


def rewrite(path: Path, change: Change) -> None:
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def lose(name: str) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        for tensors in (content["model"], content.get("model_ema", {})):
            tensors.pop(name, None)

    return lambda path: rewrite(path, change)


def reshape(name: str) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        for tensors in (content["model"], content.get("model_ema", {})):
            if name in tensors:
                tensors[name] = tensors[name][..., None]

    return lambda path: rewrite(path, change)


def smuggle(path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for tensors in (content["model"], content.get("model_ema", {})):
            tensors["foreign"] = Foreign()

    rewrite(path, change)


def swap(path: Path) -> None:
    other = MAR_FILE if path == KL16 else KL16
    path.write_bytes(other.read_bytes())


COMMON = [
    (Path.unlink, " is missing, expected a file of torch.save"),
    (truncate, " is damaged or cut off, expected a whole file of torch.save"),
    (smuggle, "Foreign, expected a name and a tensor"),
    (lambda path: path.write_text("<html>"), " is a web page, expected a file of torch.save"),
]


def refuse(stage: str, *words: str) -> None:
    """Check that a stage ends in a message of one line, and wrote nothing."""
    before = sorted(Path("out").rglob("*"))
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        tiny.run_stage(stage)
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert sorted(Path("out").rglob("*")) == before


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *COMMON,
        (swap, " holds a generator, expected a tokenizer"),
        (lose("quant_conv.weight"), " expected: 1 missing (quant_conv.weight)"),
        (reshape("encoder.conv_in.bias"), "(encoder.conv_in.bias (4, 1), expected (4,))"),
    ],
)
def test_a_damaged_tokenizer_is_refused(damage: Callable[[Path], None], words: str) -> None:
    shutil.rmtree("out/train_tokenizer")
    damage(KL16)
    refuse("train_tokenizer", str(KL16), words)


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *COMMON,
        (swap, " has the entries 'model', expected 'model_ema' of a generator"),
        (lose("z_proj.weight"), " does not hold a whole generator: z_proj.weight is missing"),
        (
            lose("decoder_norm.bias"),
            " expected: 1 missing (decoder_norm.bias)",
        ),
        (reshape("fake_latent"), "1 of another shape (fake_latent (1, 16, 1), expected (1, 16))"),
        (lose("class_emb.weight"), "class_emb.weight is missing"),
        (
            lambda path: rewrite(path, lambda content: content.pop("model")),
            " has the entries 'model_ema', 'optimizer', 'epoch', 'args', expected 'model' of a",
        ),
    ],
)
def test_a_damaged_generator_is_refused(damage: Callable[[Path], None], words: str) -> None:
    shutil.rmtree("out/train_generator")
    damage(MAR_FILE)
    refuse("train_generator", str(MAR_FILE), words)


@pytest.mark.usefixtures("copied")
def test_another_digest_is_refused_and_the_right_one_is_not() -> None:
    for section, stage, path in (
        ("tokenizer", "train_tokenizer", KL16),
        ("generator", "train_generator", MAR_FILE),
    ):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        params = released_params()
        params[section]["sha256"] = "0" * 64
        write_params(params)
        refuse(stage, f"{path} has the SHA-256 {found}, expected {'0' * 64}")
        params[section]["sha256"] = found
        write_params(params)
        tiny.run_stage(stage)


@pytest.mark.usefixtures("copied")
def test_a_generator_of_another_size_or_for_other_classes_is_refused() -> None:
    params = released_params()
    params["generator"]["condition_tokens"] = 5
    write_params(params)
    refuse("train_generator", "4 condition tokens, 10 classes), expected a custom size (16 wide")
    params["generator"]["condition_tokens"] = 4
    write_params(params)
    path = Path("out/encode/latents.json")
    seal.write_json(path, {**seal.read_json(path), "num_classes": 7})
    refuse(
        "train_generator",
        f"{MAR_FILE} generates 10 classes, the data have 7; 'new' trains a class embedding for",
        "generator.classes: ",
    )


# Exports that are refused


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (
            "tokenizer",
            {
                "kind": "vq",
                "codebook_size": 20,
                "commitment_weight": 0.25,
                "revive_dead": True,
            },
            "tokenizer.kind: must be 'kl' in the released layout, got 'vq'",
        ),
        ("tokenizer", {"kind": "pixels"}, "must be 'kl' in the released layout, got 'pixels'"),
    ],
)
@pytest.mark.usefixtures("copied")
def test_tokenizers_without_an_official_layout_are_not_exported(
    tmp_path: Path, section: str, changes: dict[str, Any], words: str
) -> None:
    sizes = released_params()[section] if changes["kind"] == "vq" else {}
    left = ("source", "path", "sha256", "kl_weight")
    config = {**{k: v for k, v in sizes.items() if k not in left}, **changes}
    adapter: TypeAdapter[Any] = TypeAdapter(TokenizerConfig)
    save_tokenizer(export.TOKENIZER, build_tokenizer(adapter.validate_python(config)))
    with pytest.raises(ValueError, match=re.escape(words)):
        export.export(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"attention": "causal", "mask_ratio": None},
            "generator.attention: must be 'bidirectional' in the released layout, got 'causal'",
        ),
        (
            {"head": {"kind": "l2"}},
            "generator.head.kind: must be 'diffusion' in the released layout, got 'l2'",
        ),
    ],
)
@pytest.mark.usefixtures("copied")
def test_generators_without_an_official_layout_are_neither_exported_nor_imported(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    section = {**released_params()["generator"], **changes}
    config = GeneratorConfig.model_validate(
        {key: section[key] for key in GeneratorConfig.model_fields}
    )
    digest = atomic.digest(export.TOKENIZER)
    save_mar(export.GENERATOR, MAR(config, LatentShape(2, 4, 4), 10), digest)
    with pytest.raises(ValueError, match=re.escape(words)):
        export.export(tmp_path / "a")
    assert not (tmp_path / "a").exists()

    params = released_params()
    params["generator"] = section
    params["sample"]["num_steps"] = 16
    if "head" in changes:
        params["sample"]["head"] = {"kind": "l2"}
    write_params(params)
    with pytest.raises(ValueError, match=re.escape(words)):
        check.check_all()


@pytest.mark.usefixtures("project")
def test_an_export_before_the_stages_is_one_readable_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "somewhere"])
    with pytest.raises(SystemExit) as ended:
        export.main()
    assert ended.value.code == 1
    expected = f"export: {export.TOKENIZER} is missing; the stage that makes it has not run\n"
    assert capsys.readouterr().err == expected
