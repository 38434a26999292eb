"""A folder in the layout of `diffusers` gives our autoencoder its weights, or says why it cannot.

The folders are made here: names and shapes are written out as that library writes them, and none of
the tables of `mar.released.diffusers_folder` is used.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import (
    conv2d,
    group_norm,
    interpolate,
    linear,
    pad,
    scaled_dot_product_attention,
    silu,
)

from mar.files import atomic
from mar.released.diffusers_folder import WEIGHTS
from mar.released.reader import read_tokenizer
from mar.released.tokenizer import DiffusersFolder, to_ours
from mar.tokenizers.diffusers import DiffusersAutoencoder
from mar.tokenizers.registry import load_tokenizer, save_tokenizer


SD: dict[str, Any] = {  # as in stable-diffusion-v1-5/vae, but narrow
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
}
FLUX: dict[str, Any] = {  # as in FLUX.1-dev/vae, which is SD3's layout as well
    **SD,
    "_diffusers_version": "0.30.0.dev0",
    "_name_or_path": "../checkpoints/flux-dev",
    "block_out_channels": [4, 8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "force_upcast": True,
    "latent_channels": 16,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_post_quant_conv": False,
    "use_quant_conv": False,
}
PLAIN: dict[str, Any] = {**SD, "mid_block_add_attention": False, "layers_per_block": 1}
FAMILIES = pytest.mark.parametrize("family", [SD, FLUX, PLAIN], ids=["sd", "flux", "plain"])


def shapes(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """List the tensors of a folder."""
    widths, blocks = config["block_out_channels"], config["layers_per_block"]
    latent, last = config["latent_channels"], config["block_out_channels"][-1]

    def conv(name: str, before: int, after: int, kernel: int = 3):
        yield f"{name}.weight", (after, before, kernel, kernel)
        yield f"{name}.bias", (after,)

    def norm(name: str, channels: int):
        yield f"{name}.weight", (channels,)
        yield f"{name}.bias", (channels,)

    def resnet(name: str, before: int, after: int):
        yield from norm(f"{name}.norm1", before)
        yield from conv(f"{name}.conv1", before, after)
        yield from norm(f"{name}.norm2", after)
        yield from conv(f"{name}.conv2", after, after)
        if before != after:
            yield from conv(f"{name}.conv_shortcut", before, after, 1)

    def middle(name: str):
        yield from resnet(f"{name}.resnets.0", last, last)
        if config.get("mid_block_add_attention", True):
            yield from norm(f"{name}.attentions.0.group_norm", last)
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                yield f"{name}.attentions.0.{part}.weight", (last, last)
                yield f"{name}.attentions.0.{part}.bias", (last,)
        yield from resnet(f"{name}.resnets.1", last, last)

    yield from conv("encoder.conv_in", 3, widths[0])
    before = widths[0]
    for level, width in enumerate(widths):
        for block in range(blocks):
            name = f"encoder.down_blocks.{level}.resnets.{block}"
            yield from resnet(name, before, width)
            before = width
        if level < len(widths) - 1:
            yield from conv(f"encoder.down_blocks.{level}.downsamplers.0.conv", width, width)
    yield from middle("encoder.mid_block")
    yield from norm("encoder.conv_norm_out", last)
    yield from conv("encoder.conv_out", last, 2 * latent)

    yield from conv("decoder.conv_in", latent, last)
    yield from middle("decoder.mid_block")
    before = last
    for level, width in enumerate(reversed(widths)):
        for block in range(blocks + 1):
            yield from resnet(f"decoder.up_blocks.{level}.resnets.{block}", before, width)
            before = width
        if level < len(widths) - 1:
            yield from conv(f"decoder.up_blocks.{level}.upsamplers.0.conv", width, width)
    yield from norm("decoder.conv_norm_out", widths[0])
    yield from conv("decoder.conv_out", widths[0], 3)
    if config.get("use_quant_conv", True):
        yield from conv("quant_conv", 2 * latent, 2 * latent, 1)
    if config.get("use_post_quant_conv", True):
        yield from conv("post_quant_conv", latent, latent, 1)


class Reference:
    """The same autoencoder as functions of the folder's tensors."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.levels = tensors, len(config["block_out_channels"])
        self.groups = config["norm_num_groups"]

    def conv(self, x: Tensor, name: str, padding: int = 1, stride: int = 1) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return conv2d(x, weight, bias, padding=padding, stride=stride)

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        return group_norm(x, self.groups, weight, bias, eps=1e-6)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def resnets(self, x: Tensor, name: str) -> Tensor:
        index = 0
        while f"{name}.resnets.{index}.conv1.weight" in self.tensors:
            x = self.resnet(x, f"{name}.resnets.{index}")
            index += 1
        return x

    def resnet(self, x: Tensor, name: str) -> Tensor:
        y = self.conv(silu(self.norm(x, f"{name}.norm1")), f"{name}.conv1")
        y = self.conv(silu(self.norm(y, f"{name}.norm2")), f"{name}.conv2")
        if f"{name}.conv_shortcut.weight" in self.tensors:
            x = self.conv(x, f"{name}.conv_shortcut", padding=0)
        return x + y

    def middle(self, x: Tensor, name: str) -> Tensor:
        x = self.resnet(x, f"{name}.resnets.0")
        attention = f"{name}.attentions.0"
        if f"{attention}.to_q.weight" in self.tensors:
            rows = self.norm(x, f"{attention}.group_norm").flatten(2).transpose(1, 2)
            q, k, v = (self.linear(rows, f"{attention}.to_{part}") for part in "qkv")
            mixed = self.linear(scaled_dot_product_attention(q, k, v), f"{attention}.to_out.0")
            x = x + mixed.transpose(1, 2).reshape(x.shape)
        return self.resnet(x, f"{name}.resnets.1")

    def encode(self, x: Tensor) -> Tensor:
        x = self.conv(x, "encoder.conv_in")
        for level in range(self.levels):
            name = f"encoder.down_blocks.{level}"
            x = self.resnets(x, name)
            if level < self.levels - 1:
                x = self.conv(pad(x, (0, 1, 0, 1)), f"{name}.downsamplers.0.conv", 0, 2)
        x = self.middle(x, "encoder.mid_block")
        x = self.conv(silu(self.norm(x, "encoder.conv_norm_out")), "encoder.conv_out")
        return self.conv(x, "quant_conv", 0) if "quant_conv.weight" in self.tensors else x

    def decode(self, z: Tensor) -> Tensor:
        if "post_quant_conv.weight" in self.tensors:
            z = self.conv(z, "post_quant_conv", 0)
        x = self.middle(self.conv(z, "decoder.conv_in"), "decoder.mid_block")
        for level in range(self.levels):
            name = f"decoder.up_blocks.{level}"
            x = self.resnets(x, name)
            if level < self.levels - 1:
                x = self.conv(interpolate(x, scale_factor=2), f"{name}.upsamplers.0.conv")
        return self.conv(silu(self.norm(x, "decoder.conv_norm_out")), "decoder.conv_out")


def make_tensors(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return random weights that neither vanish nor explode on their way."""
    rng = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes(config):
        scale = 0.3 if len(shape) == 1 else torch.Size(shape[1:]).numel() ** -0.5
        values = torch.randn(shape, generator=rng)
        tensors[name] = values * scale + float("norm" in name and name.endswith(".weight"))
    return tensors


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), folder / "diffusion_pytorch_model.safetensors")
    return folder


def section(family: Mapping[str, Any], **changes: Any) -> DiffusersFolder:
    fields: dict[str, Any] = {
        "kind": "diffusers",
        "path": "vae",
        "sha256": None,
        "latent_channels": family["latent_channels"],
        "block_out_channels": family["block_out_channels"],
        "layers_per_block": family["layers_per_block"],
        "norm_num_groups": family["norm_num_groups"],
        "use_quant_conv": family.get("use_quant_conv", True),
        "use_post_quant_conv": family.get("use_post_quant_conv", True),
        "mid_block_add_attention": family.get("mid_block_add_attention", True),
        "kl_weight": 1e-6,
        **changes,
    }
    return DiffusersFolder.model_validate(fields)


def load(base: Path, config: DiffusersFolder) -> DiffusersAutoencoder:
    model = DiffusersAutoencoder(config)
    found = read_tokenizer(config, model, base=base)
    model.load_state_dict(to_ours(config, found.tensors, model))
    return model


@FAMILIES
def test_a_folder_encodes_and_decodes_as_its_tensors_say(
    family: dict[str, Any], tmp_path: Path, rng: torch.Generator
) -> None:
    tensors = make_tensors(family)
    write(tmp_path / "vae", family, tensors)
    model, reference = load(tmp_path, section(family)), Reference(family, tensors)
    levels, channels = len(family["block_out_channels"]), family["latent_channels"]
    assert (model.stride, model.latent_channels) == (2 ** (levels - 1), channels)
    images = torch.rand(2, 3, 16, 24, generator=rng) * 2 - 1
    with torch.no_grad():
        moments, expected = model.encode(images), reference.encode(images)
        assert moments.shape == (2, 2 * channels, 16 // model.stride, 24 // model.stride)
        assert float(expected.std()) > 0.1
        assert torch.allclose(moments, expected, atol=1e-4)
        latents = torch.randn(2, channels, 2, 3, generator=rng)
        decoded, expected = model.decode(latents), reference.decode(latents)
        assert decoded.shape == (2, 3, 2 * model.stride, 3 * model.stride)
        assert float(expected.std()) > 0.1
        assert torch.allclose(decoded, expected, atol=1e-4)


def test_our_file_needs_the_folder_no_more(tmp_path: Path, rng: torch.Generator) -> None:
    folder = write(tmp_path / "vae", FLUX, make_tensors(FLUX))
    model = load(tmp_path, section(FLUX))
    save_tokenizer(tmp_path / "tokenizer.safetensors", model)
    assert b'"path"' not in (tmp_path / "tokenizer.safetensors").read_bytes().replace(b"\\", b"")
    (folder / "config.json").unlink()
    (folder / WEIGHTS).unlink()
    folder.rmdir()
    again = load_tokenizer(tmp_path / "tokenizer.safetensors")
    assert again.config == model.config
    images = torch.rand(1, 3, 16, 16, generator=rng)
    with torch.no_grad():
        assert torch.equal(again.encode(images), model.encode(images))


def test_names_and_shapes_of_old_files_are_read(tmp_path: Path) -> None:
    """Attention had other names until diffusers 0.17, and 1x1 convolutions in some files."""
    tensors = make_tensors(SD)
    write(tmp_path / "vae", SD, tensors)
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old: dict[str, Tensor] = {}
    for name, value in tensors.items():
        for present, former in old_names.items():
            name = name.replace(f".attentions.0.{present}.", f".attentions.0.{former}.")
        old[name] = value[:, :, None, None] if value.ndim == 2 else value
    assert len(old.keys() - tensors.keys()) == 16
    write(tmp_path / "old", SD, old)
    first, second = (load(tmp_path, section(SD, path=path)) for path in ("vae", "old"))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    tensors = {name: value.bfloat16() for name, value in make_tensors(SD).items()}
    write(tmp_path / "vae", SD, tensors)
    model = load(tmp_path, section(SD))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(model.encoder.conv_in.weight, tensors["encoder.conv_in.weight"].float())


# Mistakes


def refuse(tmp_path: Path, expected: str, **changes: Any) -> None:
    with pytest.raises(ValueError, match=expected):
        load(tmp_path, section(SD, **changes))


def test_each_key_that_differs_from_the_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "vae", FLUX, {})
    with pytest.raises(ValueError, match=r"^tokenizer\.latent_channels") as caught:
        load(tmp_path, section(SD, norm_num_groups=2))
    path = tmp_path / "vae" / "config.json"
    assert str(caught.value).splitlines() == [
        f"tokenizer.latent_channels: got 4, but {path} says 16",
        f"tokenizer.block_out_channels: got [8, 16, 16], but {path} says [4, 8, 16, 16]",
        f"tokenizer.norm_num_groups: got 2, but {path} says 4",
        f"tokenizer.use_quant_conv: got True, but {path} says False",
        f"tokenizer.use_post_quant_conv: got True, but {path} says False",
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"act_fn": "gelu"},
            r"config\.json: act_fn: input should be 'silu' or 'swish', got 'gelu'",
        ),
        (
            {"down_block_types": ["AttnDownEncoderBlock2D"] * 3},
            r"down_block_types\.0: input should be 'DownEncoderBlock2D', got 'AttnDown",
        ),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 entries, expected 3"),
        ({"in_channels": 4}, "in_channels: input should be 3, got 4"),
        ({"latent_channels": "4"}, "latent_channels: input should be a valid integer, got '4'"),
        ({"gamma": 3}, "gamma is not a known key, got 3"),
        ({"_class_name": "AsymmetricAutoencoderKL"}, "_class_name must be 'AutoencoderKL', got"),
    ],
)
def test_what_cannot_be_built_is_named(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    write(tmp_path / "vae", {**SD, **changes}, {})
    refuse(tmp_path, expected)


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    refuse(tmp_path, rf"tokenizer\.path: there is no folder {tmp_path}/vae")
    folder = write(tmp_path / "vae", SD, {})
    (folder / WEIGHTS).rename(folder / "model.safetensors")
    refuse(tmp_path, rf"has no {WEIGHTS}; it holds config\.json, model\.safetensors")
    (folder / "model.safetensors").rename(folder / WEIGHTS)
    (folder / "config.json").write_text("[")
    refuse(tmp_path, r"config\.json is not valid JSON")
    (folder / "config.json").write_text("[]")
    refuse(tmp_path, r"config\.json must hold an object, got \[\]")
    (folder / "config.json").unlink()
    refuse(tmp_path, r"tokenizer\.path: .*config\.json is missing")


def test_a_damaged_file_or_another_one_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "vae", SD, make_tensors(SD)) / WEIGHTS
    load(tmp_path, section(SD, sha256=atomic.digest(path).upper()))
    refuse(
        tmp_path, rf"tokenizer\.sha256: .* has {atomic.digest(path)}, expected a", sha256="a" * 64
    )
    path.write_bytes(path.read_bytes()[:-10])
    refuse(tmp_path, "is not a readable safetensors file")


def test_tensors_that_do_not_fit_are_named_as_in_the_file(tmp_path: Path) -> None:
    tensors = make_tensors(SD)
    tensors["extra"] = torch.zeros(1)
    for index in (0, 1, 2):
        del tensors[f"decoder.up_blocks.0.resnets.{index}.conv1.bias"]
    name = "encoder.mid_block.attentions.0.to_q"
    tensors[f"{name}.weight"] = torch.zeros(16, 8)
    former = "encoder.mid_block.attentions.0.query.bias"
    tensors[former] = torch.zeros(16)
    write(tmp_path / "vae", SD, tensors)
    with pytest.raises(ValueError, match=r"tensors do not fit the \d+ expected") as caught:
        load(tmp_path, section(SD))
    message = str(caught.value)
    assert "3 missing (decoder.up_blocks.0.resnets.0.conv1.bias; decoder.up_blocks.0." in message
    assert "1 unknown (extra)" in message
    assert f"1 given twice ({former})" in message
    assert f"1 of another shape ({name}.weight (16, 8), expected (16, 16, 1, 1))" in message


def test_groups_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="16 channels do not divide into 3 groups"):
        section(SD, norm_num_groups=3, block_out_channels=[3, 16])
