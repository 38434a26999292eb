"""Read an autoencoder's folder as `diffusers` writes it, without that library.

`config.json` says which layers there are, `diffusion_pytorch_model.safetensors` holds their weights
under names of its own. Both are checked in full before anything is made of them.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from mar.files import atomic, weights
from mar.released import contents
from mar.released import diffusers_names as names
from mar.released.contents import Found
from mar.released.tokenizer import DiffusersFolder


CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
AUTOENCODER = "vae"  # its folder in that of a whole pipeline


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


class FolderKind(BaseModel):
    """Which class of `diffusers` any `config.json` is for."""

    name: str = Field(alias="_class_name")


COMPARED = (
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "use_quant_conv",
    "use_post_quant_conv",
    "mid_block_add_attention",
)


def read(section: DiffusersFolder, model: nn.Module, base: Path) -> Found:
    """Return the weights that a section names, under the names of their file.

    Args:
        section: Where they are, and what they should be.
        model: The autoencoder that they are for.
        base: Where a relative path begins.

    Raises:
        ValueError: something is missing, damaged, or not what the section `tokenizer` says; the
            message names each file, key or tensor with what was found and what was expected.
    """
    path, config, remarks = _locate(section.place(base))
    if config is not None:
        _compare(section, read_config(config), config)
    contents.check_file(path, None)
    if digest := atomic.other_digest(path, section.sha256):
        raise ValueError(f"tokenizer.sha256: {path} has {digest}, expected {section.sha256}")
    found = contents.read_tokenizer(path, None)
    try:
        check_tensors(found.tensors, model.state_dict())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Found(found.tensors, [*remarks, *found.remarks])


def _locate(path: Path) -> tuple[Path, Path | None, list[str]]:
    """Return the file of weights, the `config.json` that describes it, and remarks."""
    if path.name == CONFIG:
        path = path.parent
    if path.is_dir():
        folder = path
        if not (path / CONFIG).exists() and (path / AUTOENCODER / CONFIG).is_file():
            folder = path / AUTOENCODER
        weights_file = _weights_file(folder)
        remarks = [] if folder == path else [f"{path} is a pipeline; its {AUTOENCODER} is read"]
        if weights_file.name != WEIGHTS:
            remarks.append(f"{folder} has no {WEIGHTS}; {weights_file.name} is read")
        return weights_file, folder / CONFIG, remarks
    if not path.exists():
        raise ValueError(f"tokenizer.path: there is no folder {path}, and no file of that name")
    config = path.with_name(CONFIG)
    if _describes_autoencoder(config):
        return path, config, []
    return (
        path,
        None,
        [
            f"{path}: there is no {CONFIG} beside it, so tokenizer.norm_num_groups, which no "
            "tensor tells, is taken as it is"
        ],
    )


def _weights_file(folder: Path) -> Path:
    """Return the file of weights in a folder: the usual one, or the only one of another name."""
    for pattern in (
        WEIGHTS,
        "diffusion_pytorch_model*.safetensors",
        "diffusion_pytorch_model*.bin",
    ):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise ValueError(
                f"tokenizer.path: {folder} has no {WEIGHTS} but {names}; give the path of one"
            )
    if not (folder / CONFIG).is_file():
        raise ValueError(f"tokenizer.path: {folder / CONFIG} is missing")
    holds = ", ".join(sorted(child.name for child in folder.iterdir()))
    raise ValueError(f"tokenizer.path: {folder} has no {WEIGHTS}; it holds {holds}")


def _describes_autoencoder(config: Path) -> bool:
    try:
        return FolderKind.model_validate_json(config.read_bytes()).name == "AutoencoderKL"
    except (OSError, ValueError):
        return False


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


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that a file's tensors are those of a model, by their names there, or by LDM's.

    Raises:
        ValueError: tensors are missing, unknown, or of another shape; the message counts them and
            names the first of each kind.
    """
    levels = names.count_levels(expected)
    by_ldm = not contents.has_diffusers_names(tensors)
    sources = names.find(tensors, expected)
    taken = set(sources.values())
    present = {names.present_name(name) for name in taken}
    unused = [name for name in tensors if name not in taken]
    problems: dict[str, list[str]] = {
        "missing": [
            name if by_ldm else names.their_name(name, levels)
            for name in expected
            if name not in sources
        ],
        "unknown": [name for name in unused if names.present_name(name) not in present],
        "given twice": [name for name in unused if names.present_name(name) in present],
        "of another shape": [
            f"{source} {tuple(tensors[source].shape)}, expected {tuple(expected[name].shape)}"
            for name, source in sources.items()
            if not _fits(tensors[source], expected[name])
        ],
    }
    weights.refuse_misfits(problems, len(expected))


def _fits(tensor: Tensor, expected: Tensor) -> bool:
    """Say whether shapes are equal, or one is a matrix and the other a 1x1 convolution."""
    shape = expected.shape
    return tensor.shape == shape or (tensor.shape == shape[:2] and shape[2:] == (1, 1))


def _compare(section: DiffusersFolder, found: FolderConfig, path: Path) -> None:
    problems = [
        f"tokenizer.{key}: got {getattr(section, key)!r}, but {path} says {getattr(found, key)!r}"
        for key in COMPARED
        if getattr(section, key) != getattr(found, key)
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
