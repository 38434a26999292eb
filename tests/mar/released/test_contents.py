"""Weights are found in files as people have them: wrapped, beside others, in safetensors.

What is left out is told, and what cannot be told apart is refused.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor

from mar.model.mar import MAR
from mar.released import contents, reader
from mar.released.generator import ReleasedGenerator
from mar.released.names import to_released
from mar.released.tokenizer import LDMFile, ReleasedAutoencoder, to_ours
from mar.tokenizers.kl import AutoencoderKL
from mar.tokenizers.ldm import LDMAutoencoder
from stages import presets


ROOT = Path(__file__).parents[3]


class ModelCheckpoint:
    """As Lightning's callback, which its checkpoints name as the key of its state."""


def lightning(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Return what a checkpoint of Lightning 1.4 holds, with objects of other libraries."""
    return {
        "epoch": 11,
        "global_step": 250_000,
        "pytorch-lightning_version": "1.4.2",
        "state_dict": dict(state),
        "callbacks": {ModelCheckpoint: {"best_model_score": np.float64(0.5), "dirpath": Path("x")}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "hyper_parameters": ModelCheckpoint(),
    }


LOSS = {
    "loss.logvar": torch.zeros(()),
    "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(2),
    "loss.discriminator.main.0.weight": torch.zeros(2),
}


def kl_section(**changes: Any) -> ReleasedAutoencoder:
    fields: dict[str, Any] = {
        "kind": "kl",
        "source": "released",
        "path": "model.ckpt",
        "sha256": None,
        "latent_channels": 2,
        "base_channels": 4,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "encoder_attention": True,
        "kl_weight": 1e-6,
    }
    return ReleasedAutoencoder.model_validate({**fields, **changes})


def ldm_section(**changes: Any) -> LDMFile:
    fields = kl_section().model_dump()
    del fields["source"], fields["encoder_attention"]
    return LDMFile.model_validate({**fields, "kind": "ldm", "attention_strides": [2], **changes})


def tensors_of(model: torch.nn.Module) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(value.shape, generator=rng) for name, value in model.state_dict().items()
    }


def read(
    section: ReleasedAutoencoder | LDMFile, folder: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Return what the importer makes of a tokenizer's file, and its remarks without paths."""
    is_ldm = isinstance(section, LDMFile)
    model = LDMAutoencoder(section) if is_ldm else AutoencoderKL(section)
    found = reader.read_tokenizer(section, model, base=folder)
    remarks = [remark.replace(f"{folder}/", "") for remark in found.remarks]
    return to_ours(section, found.tensors, model), remarks


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


# LDM's own checkpoints


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("archive", [True, False], ids=["archive", "before 1.6"])
def test_an_autoencoder_comes_out_of_a_checkpoint_of_ldm(
    tmp_path: Path, prefix: str, archive: bool
) -> None:
    section = ldm_section()
    expected = tensors_of(LDMAutoencoder(section))
    assert any(name.startswith("decoder.up.1.attn.") for name in expected)
    state = {prefix + name: value for name, value in {**expected, **LOSS}.items()}
    if prefix:
        state |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "betas": torch.zeros(9)}
    path = tmp_path / "model.ckpt"
    torch.save(lightning(state), path, _use_new_zipfile_serialization=archive)
    found, remarks = read(section, tmp_path)
    assert_same(found, expected)
    foreign, *others = remarks
    assert "nothing is run of" in foreign
    assert ".ModelCheckpoint" in foreign
    if prefix:
        count = len(expected) + len(LOSS)
        assert others == [
            f"model.ckpt: 'first_stage_model.' is left out of {count} names",
            "model.ckpt: 5 tensors are not of the tokenizer, and are not read: "
            "first_stage_model.loss.logvar, "
            "first_stage_model.loss.perceptual_loss.net.slice1.0.weight, "
            "first_stage_model.loss.discriminator.main.0.weight, "
            "model.diffusion_model.out.2.bias, betas",
        ]
    else:
        assert others == [
            f"model.ckpt: 3 tensors are not of the tokenizer, and are not read: {', '.join(LOSS)}"
        ]


def test_the_preset_of_the_paper_reads_a_checkpoint_of_ldms_kl_f16(tmp_path: Path) -> None:
    """All its names and shapes; each tensor repeats one number, so that the file is small."""
    text = presets.resolve("paper/table2-kl16-openimages", ROOT / "presets")
    section = LDMFile.model_validate(
        {**YAML(typ="safe").load(text)["tokenizer"], "path": "model.ckpt"}
    )
    with torch.device("meta"):
        model = LDMAutoencoder(section)
        kl16 = AutoencoderKL(kl_section(latent_channels=16, base_channels=128,
            channel_multipliers=[1, 1, 2, 2, 4], num_res_blocks=2))  # fmt: skip
    added = model.state_dict().keys() - kl16.state_dict().keys()
    layers = [f"decoder.up.4.attn.{index}." for index in range(3)]  # one more than in the encoder
    assert len(added) == 3 * 10
    assert all(name.startswith(tuple(layers)) for name in added)
    state = {
        name: torch.tensor(float(index % 2048), dtype=torch.float16).expand(value.shape)
        for index, (name, value) in enumerate(model.state_dict().items())
    }
    torch.save(lightning({**state, **LOSS}), tmp_path / "model.ckpt")
    found = reader.read_tokenizer(section, model, base=tmp_path)
    ours = to_ours(section, found.tensors, model)
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in model.state_dict().items()
    }
    assert [float(value.flatten()[-1]) for value in ours.values()] == [
        index % 2048 for index in range(len(ours))
    ]


def test_the_kind_that_fits_a_file_is_named(tmp_path: Path) -> None:
    section = kl_section()
    torch.save({"state_dict": tensors_of(LDMAutoencoder(ldm_section()))}, tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"tokenizer\.kind: must be 'ldm' for the layers in .*'kl'"
    ):
        read(section, tmp_path)
    named = {
        name.replace("encoder.down.0.block.", "encoder.down_blocks.0.resnets."): value
        for name, value in tensors_of(AutoencoderKL(section)).items()
    }
    torch.save(named, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"tokenizer\.kind: must be 'diffusers' for the layers"):
        read(section, tmp_path)


# Wrappers


def compiled(name: str) -> str:
    return f"_orig_mod.{name}"


def compiled_inside(name: str) -> str:
    return name.replace("decoder.", "decoder._orig_mod.")


WRAPPERS: dict[str, Callable[[str], str]] = {
    "compiled": compiled,
    "compiled inside": compiled_inside,
    "DDP": lambda name: f"module.{name}",
    "a module of Lightning": lambda name: f"model.{name}",
    "compiled, then DDP": lambda name: f"module._orig_mod.{name}",
    "DDP, then compiled": lambda name: f"_orig_mod.module.{name}",
    "all of them": lambda name: f"model.module._orig_mod.{name}",
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_a_tokenizer_are_taken_off_and_told(name: str, tmp_path: Path) -> None:
    section, wrap = kl_section(), WRAPPERS[name]
    expected = tensors_of(AutoencoderKL(section))
    torch.save(
        {"model": {wrap(name): value for name, value in expected.items()}}, tmp_path / "model.ckpt"
    )
    found, remarks = read(section, tmp_path)
    assert_same(found, expected)
    assert remarks
    assert all("is left out of" in remark for remark in remarks)
    assert any("'_orig_mod.'" in remark for remark in remarks) == (
        "ompiled" in name or "all" in name
    )


def generator_section(model: MAR, **changes: Any) -> ReleasedGenerator:
    file = {"source": "released", "path": "mar.pth", "sha256": None, "weights": "model_ema"}
    fields = {**model.config.model_dump(), **file, "classes": "released", **changes}
    return ReleasedGenerator.model_validate(fields)


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_of_a_generator_are_taken_off_and_told(
    name: str, tiny_model: MAR, tmp_path: Path
) -> None:
    wrap = WRAPPERS[name]
    released = to_released(tiny_model.state_dict())
    sets = {
        which: {
            wrap(name.replace("diffloss.", "diffloss._orig_mod.")): value + number
            for name, value in released.items()
        }
        for number, which in enumerate(["model", "model_ema"])
    }
    torch.save(sets, tmp_path / "mar.pth")
    section = generator_section(tiny_model)
    found = reader.read_generator(section, tiny_model, base=tmp_path)
    assert_same(section.to_ours(found.model), tiny_model.state_dict())
    raised = {name: value + 1 for name, value in tiny_model.state_dict().items()}
    assert_same(section.to_ours(found.chosen), raised)
    assert len(found.remarks) == len(set(found.remarks)) > 0


def test_several_sets_of_weights_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of(AutoencoderKL(kl_section()))
    both = {
        f"{prefix}.{name}": value for prefix in ("ema", "net") for name, value in tensors.items()
    }
    torch.save({"model": both}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"several sets .* begin with 'ema\.' and 'net\.'"):
        read(kl_section(), tmp_path)
    twice = {**tensors, **{f"_orig_mod.{name}": value for name, value in tensors.items()}}
    torch.save({"model": twice}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"holds several tensors of one name: encoder\.conv_in\.w"):
        read(kl_section(), tmp_path)


def test_unknown_tensors_of_the_model_are_not_passed_over(tmp_path: Path) -> None:
    tensors = tensors_of(AutoencoderKL(kl_section()))
    state = {f"module.{name}": value for name, value in tensors.items()}
    state["module.encoder.extra.weight"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"1 unknown \(encoder\.extra\.weight\)"):
        read(kl_section(), tmp_path)


# Tensors alone


@pytest.mark.parametrize("ending", ["safetensors", "pth", "bin"])
def test_files_of_tensors_alone_are_read(ending: str, tiny_model: MAR, tmp_path: Path) -> None:
    def write(name: str, tensors: dict[str, Tensor]) -> str:
        path = tmp_path / f"{name}.{ending}"
        if ending == "safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path)
        return path.name

    expected = tensors_of(AutoencoderKL(kl_section()))
    found, remarks = read(kl_section(path=write("a", expected)), tmp_path)
    assert_same(found, expected)
    assert remarks == []
    section = generator_section(tiny_model, path=write("b", to_released(tiny_model.state_dict())))
    read_sets = reader.read_generator(section, tiny_model, base=tmp_path)
    for tensors in (read_sets.chosen, read_sets.model):
        assert_same(section.to_ours(tensors), tiny_model.state_dict())
    assert read_sets.remarks[0] == (
        f"{tmp_path}/b.{ending} holds one set of weights, which is taken for 'model_ema'"
    )


def test_a_damaged_safetensors_file_and_one_of_something_else_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors_of(AutoencoderKL(kl_section())), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is not a readable safetensors f"):
        contents.read_tokenizer(path, None)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(
        ValueError, match="has the entries 'a', expected 'model' of a tokenizer, or"
    ):
        contents.read_tokenizer(path, None)


# Access


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"model": tensors_of(AutoencoderKL(kl_section()))}, path)
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may read everything
            os.seteuid(65534)
        with pytest.raises(ValueError, match=r"model\.ckpt cannot be read: permission denied"):
            contents.read_tokenizer(path, None)
    finally:
        os.seteuid(user)
