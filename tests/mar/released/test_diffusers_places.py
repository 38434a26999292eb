"""An autoencoder of `diffusers` is found where people have it: in a pipeline, or as a lone file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mar.released.diffusers_folder import WEIGHTS
from mar.released.diffusers_names import their_name
from mar.released.reader import read_tokenizer
from mar.released.tokenizer import DiffusersFolder, to_ours
from mar.tokenizers.diffusers import DiffusersAutoencoder


SIZES: dict[str, Any] = {
    "latent_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    **SIZES,
}


def section(path: str, **changes: Any) -> DiffusersFolder:
    fields = {"kind": "diffusers", "path": path, "sha256": None, "kl_weight": 1e-6}
    return DiffusersFolder.model_validate({**fields, **SIZES, **changes})


@pytest.fixture
def ours() -> dict[str, Tensor]:
    model = DiffusersAutoencoder(section("vae"))
    rng = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(value.shape, generator=rng) for name, value in model.state_dict().items()
    }


@pytest.fixture
def theirs(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    def matrix(name: str, value: Tensor) -> Tensor:
        return value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 else value

    named = {their_name(name, 2): value for name, value in ours.items()}
    return {name: matrix(name, value).contiguous() for name, value in named.items()}


def write(folder: Path, tensors: dict[str, Tensor], name: str = WEIGHTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / name)
    return folder


def check(path: Path, ours: dict[str, Tensor], *remarks: str, **changes: Any) -> None:
    """Check that a path gives the weights, with remarks of some words."""
    found_section = section(str(path), **changes)
    model = DiffusersAutoencoder(found_section)
    found = read_tokenizer(found_section, model, base=Path("/nowhere"))
    tensors = to_ours(found_section, found.tensors, model)
    assert tensors.keys() == ours.keys()
    assert [name for name, value in ours.items() if not torch.equal(tensors[name], value)] == []
    assert len(found.remarks) == len(remarks)
    assert all(words in told for words, told in zip(remarks, found.remarks, strict=True))


def refuse(path: Path, expected: str, **changes: Any) -> None:
    found_section = section(str(path), **changes)
    with pytest.raises(ValueError, match=expected):
        read_tokenizer(found_section, DiffusersAutoencoder(found_section), base=Path("/nowhere"))


def test_the_folder_of_a_whole_pipeline_has_it_as_vae(
    tmp_path: Path, ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    write(tmp_path / "sd" / "vae", theirs)
    (tmp_path / "sd" / "model_index.json").write_text("{}")
    check(tmp_path / "sd", ours, "sd is a pipeline; its vae is read")
    check(tmp_path / "sd" / "vae", ours)
    check(tmp_path / "sd" / "vae" / "config.json", ours)
    refuse(tmp_path / "sd", r"tokenizer\.norm_num_groups: got 2, but .*/vae/config\.json says 4",
           norm_num_groups=2)  # fmt: skip


def test_a_file_beside_its_config_is_compared_with_it(
    tmp_path: Path, ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    path = write(tmp_path / "vae", theirs) / WEIGHTS
    check(path, ours)
    refuse(path, r"tokenizer\.norm_num_groups: got 2, but .*config\.json says 4", norm_num_groups=2)


def test_a_file_alone_is_described_by_the_section(
    tmp_path: Path, ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    path = tmp_path / "vae.safetensors"
    save_file(theirs, path)
    check(path, ours, "so tokenizer.norm_num_groups, which no tensor tells, is taken as it is")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')  # of another
    check(path, ours, "taken as it is")
    refuse(path, r"of another shape \(encoder\.conv_in\.weight \(8, 3, 3, 3\), expected \(12, ",
           block_out_channels=[12, 16])  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_file_of_ldms_names_is_read_as_it_is(
    tmp_path: Path, ours: dict[str, Tensor], prefix: str, ending: str
) -> None:
    """As Stable Diffusion's first files, which hold the whole model, or the autoencoder alone."""
    path = tmp_path / f"vae.{ending}"
    tensors = {prefix + name: value for name, value in ours.items()}
    remarks = ["taken as it is"]
    if prefix:
        tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(2)
        remarks += ["'first_stage_model.' is left out", "1 tensors are not of the tokenizer"]
    if ending == "safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": tensors}, path)
    check(path, ours, *remarks)


def test_weights_of_another_name_are_taken_if_there_is_one_file_of_them(
    tmp_path: Path, ours: dict[str, Tensor], theirs: dict[str, Tensor]
) -> None:
    folder = write(tmp_path / "a", theirs, "diffusion_pytorch_model.ema.safetensors")
    check(folder, ours, f"has no {WEIGHTS}; diffusion_pytorch_model.ema.safetensors is read")
    save_file(theirs, folder / "diffusion_pytorch_model.fp16.safetensors")
    refuse(folder, r"has no .* but diffusion_pytorch_model\.ema\.safetensors, .*; give the path of")
    check(folder / "diffusion_pytorch_model.ema.safetensors", ours)
    pickled = write(tmp_path / "b", {}, "x")
    torch.save(theirs, pickled / "diffusion_pytorch_model.bin")
    check(pickled, ours, "diffusion_pytorch_model.bin is read")


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    refuse(tmp_path / "a", r"there is no folder .*/a, and no file of that name")
    (tmp_path / "b").mkdir()
    refuse(tmp_path / "b", r"tokenizer\.path: .*/b/config\.json is missing")
    save_file({"unet.weight": torch.ones(2)}, tmp_path / "c.safetensors")
    refuse(
        tmp_path / "c.safetensors", r"c\.safetensors has the entries 'unet\.weight', expected 'mod"
    )
