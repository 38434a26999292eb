"""Read an autoencoder's folder as `diffusers` writes it, without that library.

`config.json` says which layers there are, `diffusion_pytorch_model.safetensors` holds their weights
under names of its own. Both are checked in full before anything is made of them.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn

from mar.files import atomic, weights
from mar.tokenizers.diffusers import DiffusersFolder


CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"


class FolderConfig(BaseModel):
    """What `config.json` may say, and what it means where it is silent, as in `diffusers` 0.42.

    Of what has one allowed value, only that one is built here. Not used are how latents are scaled
    (they are measured), the size of images, and `force_upcast`, which is about float16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: list[Literal["DownEncoderBlock2D"]] = ["DownEncoderBlock2D"]
    up_block_types: list[Literal["UpDecoderBlock2D"]] = ["UpDecoderBlock2D"]
    block_out_channels: list[int] = [64]
    layers_per_block: int = 1
    act_fn: Literal["silu", "swish"] = "silu"  # two names of one function
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True
    # Not used:
    sample_size: int | list[int] | None = None
    scaling_factor: float | None = None
    shift_factor: float | None = None
    latents_mean: list[float] | None = None
    latents_std: list[float] | None = None
    force_upcast: bool = True


COMPARED = (
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
)

# (ours, theirs): patterns of parts of names, all of which are applied in this order.
NAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.attentions\.0\.norm\.", ".attentions.0.group_norm."),
    (r"\.attentions\.0\.([qkv])\.", r".attentions.0.to_\1."),
    (r"\.attentions\.0\.proj_out\.", ".attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
# What attention's layers were called until diffusers 0.17; released files still have these names.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read(config: DiffusersFolder, model: nn.Module, base: Path) -> dict[str, Tensor]:
    """Return the weights of a folder under our names, as float32.

    Args:
        config: Where the folder is, and what it should describe.
        model: The autoencoder that they are for.
        base: Where a relative path begins.

    Raises:
        ValueError: something is missing, damaged, or not what the section `tokenizer` says; the
            message names each file, key or tensor with what was found and what was expected.
    """
    folder = base / Path(config.path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"tokenizer.path: there is no folder {folder}")
    _compare(config, read_config(folder / CONFIG), folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        found = ", ".join(sorted(child.name for child in folder.iterdir()))
        raise ValueError(f"tokenizer.path: {folder} has no {WEIGHTS}; it holds {found}")
    if found := atomic.other_digest(path, config.sha256):
        raise ValueError(f"tokenizer.sha256: {path} has {found}, expected {config.sha256}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None
    return to_ours(tensors, model, path)


def read_config(path: Path) -> FolderConfig:
    """Read a `config.json`.

    Raises:
        ValueError: it is missing, damaged, or describes what cannot be built here.
    """
    if not path.is_file():
        raise ValueError(f"tokenizer.path: {path} is missing")
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, got {content!r}")
    described: dict[str, object] = {**content}
    kind = described.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"{path}: _class_name must be 'AutoencoderKL', got {kind!r}")
    named = {key: value for key, value in described.items() if not key.startswith("_")}
    try:
        found = FolderConfig.model_validate(named)
    except ValidationError as error:
        raise ValueError("\n".join(_messages(path, error))) from None
    levels = len(found.block_out_channels)
    for key in ("down_block_types", "up_block_types"):
        if len(getattr(found, key)) != levels:
            raise ValueError(
                f"{path}: {key} has {len(getattr(found, key))} entries, expected {levels}, "
                "as many as block_out_channels"
            )
    return found


def to_ours(tensors: Mapping[str, Tensor], model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Rename a folder's tensors to a model's, as float32.

    The weights of attention are matrices there and 1x1 convolutions here (as they were there, too).

    Raises:
        ValueError: tensors are missing, unknown, or of another shape; the message counts them and
            names the first of each kind.
    """
    expected = model.state_dict()
    levels = len({name.split(".")[2] for name in expected if name.startswith("decoder.up.")})
    theirs = {name: their_name(name, levels) for name in expected}
    given = {_present_name(name): name for name in tensors}
    problems: dict[str, list[str]] = {
        "missing": [name for name in theirs.values() if name not in given],
        "unknown": [name for new, name in given.items() if new not in theirs.values()],
        "given twice": [name for name in tensors if given[_present_name(name)] != name],
        "of another shape": [],
    }
    fitting: dict[str, Tensor] = {}
    for name, value in expected.items():
        if theirs[name] not in given:
            continue
        tensor, shape = tensors[given[theirs[name]]], value.shape
        if tensor.shape == shape[:2] and shape[2:] == (1, 1) and ".attentions." in theirs[name]:
            tensor = tensor.reshape(shape)
        fitting[name] = tensor.float()
        if tensor.shape != shape:
            shapes = f"{tuple(tensor.shape)}, expected {tuple(shape)}"
            problems["of another shape"].append(f"{given[theirs[name]]} {shapes}")
    try:
        weights.refuse_misfits(problems, len(expected))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return fitting


def their_name(name: str, levels: int) -> str:
    """Translate our name of a tensor; the decoder's levels are numbered the other way round."""
    name = re.sub(r"\.up\.(\d+)\.", lambda found: f".up.{levels - 1 - int(found[1])}.", name)
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _present_name(name: str) -> str:
    return re.sub(
        r"(\.attentions\.0\.)(query|key|value|proj_attn)\.",
        lambda found: f"{found[1]}{OLD_NAMES[found[2]]}.",
        name,
    )


def _compare(config: DiffusersFolder, found: FolderConfig, path: Path) -> None:
    problems = [
        f"tokenizer.{key}: got {getattr(config, key)!r}, but {path} says {getattr(found, key)!r}"
        for key in COMPARED
        if getattr(config, key) != getattr(found, key)
    ]
    if problems:
        raise ValueError("\n".join(problems))


def _messages(path: Path, error: ValidationError) -> Iterable[str]:
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            yield f"{path}: {key} is not a known key, got {problem['input']!r}"
        else:
            reason = problem["msg"]
            yield f"{path}: {key}: {reason[:1].lower()}{reason[1:]}, got {problem['input']!r}"
