"""The weights that images are sampled with: those in `out/`, or released files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mar.data.class_names import read_class_names
from mar.files import seal
from mar.latents.info import LatentsInfo
from mar.latents.posterior import LatentShape
from mar.model.mar import MAR
from mar.released.contents import read_generator
from mar.released.generator import ReleasedGenerator
from mar.released.names import from_released, to_released
from mar.released.reader import read_tokenizer
from mar.released.shapes import check_tensors, describe_generator
from mar.released.tokenizer import ReleasedAutoencoder, to_ours
from mar.sampling.config import SampleConfig
from mar.sources.no_images import NoData
from mar.sources.source import Surroundings
from mar.text.encoder import TextEncoder
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.kl import AutoencoderKL
from mar.tokenizers.registry import load_tokenizer
from stages import chosen_weights, params, presets, prompts
from stages.stage import OUT


PRESETS = Path(__file__).resolve().parents[1] / presets.FOLDER


@dataclass(frozen=True)
class Weights:
    """All that images are generated with.

    Attributes:
        mar: The generator, in evaluation mode.
        tokenizer: What decodes its latents.
        latent_std: What latents were divided by in training.
        class_names: The name of each label.
        sample: How to sample, where nobody says something else.
        texts: Makes the tokens of prompts, where the generator takes texts and not classes.
        preset: Where the settings of scores stand; None is params.yaml.
        remarks: What there is to know about released files, or about a rebuilt average.
    """

    mar: MAR
    tokenizer: Tokenizer
    latent_std: float
    class_names: list[str]
    sample: SampleConfig
    texts: TextEncoder | None = None
    preset: str | None = None
    remarks: tuple[str, ...] = ()

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.mar.latent.height * self.tokenizer.stride


def trained_weights(ema: bool | None, out: Path = OUT) -> Weights:
    """Return the weights that the pipeline made.

    Args:
        ema: Their average over the training, or the last ones; None is what `sample.weights` says.
        out: The outputs of a project; its `params.yaml` lies beside them.

    Raises:
        ValueError: a stage that makes them has not run, or its files do not belong together.
    """
    tokenizer = out / "train_tokenizer" / "tokenizer.safetensors"
    classes = out / "prepare" / "classes.json"
    info_path = out / "encode" / "latents.json"
    if not out.is_dir():
        raise ValueError(
            f"{out} is not a folder{_meant(out)}; expected the outputs of a project, which `dvc "
            "repro train_generator` makes, or name released weights and their tokenizer"
        )
    for path in (tokenizer, classes, info_path):
        if not path.is_file():
            raise ValueError(f"{path} is missing{_meant(out)}; `dvc repro train_generator` makes "
                             "it, or name released weights and their tokenizer")  # fmt: skip
    info = LatentsInfo.read(info_path)
    digest = seal.digest(tokenizer)
    info.check({"tokenizer": digest})
    sample = params.load("sample", SampleConfig, out.parent / params.FILE)
    choice = sample.weights if ema is None else ("ema" if ema else "raw")
    remarks: list[str] = []
    mar = chosen_weights.load(out / "train_generator", choice, digest, remarks.append)
    return Weights(
        mar,
        load_tokenizer(tokenizer),
        info.latent_std,
        read_class_names(classes),
        sample,
        mar.text
        and prompts.open_encoder(
            out / "encode_text" / "encoder.json", mar.text, base=out.absolute().parent
        ),
        remarks=tuple(remarks),
    )


def _meant(out: Path) -> str:
    """Return `; did you mean ...?` with a folder `out` in it, or one beside it called alike."""
    if (out / OUT.name).is_dir():
        return f"; did you mean {str(out / OUT.name)!r}?"
    beside = out.absolute().parent
    if out.exists() or not beside.is_dir():
        return ""
    return params.suggest(out.name, (path.name for path in beside.iterdir() if path.is_dir()))


def released_weights(generator: Path, tokenizer: Path, ema: bool) -> Weights:
    """Return weights of files in the layout of LTH14/mar, for ImageNet at 256 px.

    Raises:
        ValueError: a file is missing, damaged, or not of a published size.
    """
    found = read_generator(generator, None, which="model_ema" if ema else "model")
    shape = describe_generator(found.tensors)
    if shape.size is None or shape.num_tokens != 256:
        raise ValueError(
            f"{generator} holds {shape}, expected a published size (base, large or huge) with 256 "
            "tokens; for others, describe them in params.yaml and run the pipeline"
        )
    preset = f"imagenet256-mar-{shape.size[0]}-released"
    sections = params.parse_yaml(presets.resolve(preset, PRESETS))
    parsed = {
        name: params.parse(name, sections[name], kind, Path("the preset"))
        for name, kind in {
            "data": NoData,
            "generator": ReleasedGenerator,
            "sample": SampleConfig,
        }.items()
    }
    codec, remarks = _released_tokenizer(sections["tokenizer"], tokenizer)
    side = parsed["data"].image_size // codec.stride
    mar = MAR(
        parsed["generator"], LatentShape(codec.latent_channels, side, side), shape.num_classes
    )
    try:
        check_tensors(to_released(mar.state_dict()), found.tensors)
    except ValueError as error:
        raise ValueError(f"{generator}: {error}") from None
    mar.load_state_dict(from_released(found.tensors))
    return Weights(
        mar.requires_grad_(False).eval(),
        codec.requires_grad_(False).eval(),
        1 / sections["latents"]["scale"],
        parsed["data"].collect(Surroundings(Path(), workers=0, max_pixels=1)).class_names,
        parsed["sample"],
        None,
        preset,
        (*remarks, *found.remarks),
    )


def _released_tokenizer(fields: dict[str, Any], path: Path) -> tuple[AutoencoderKL, Sequence[str]]:
    """Return the tokenizer of a file that a preset describes, and remarks about it."""
    section = ReleasedAutoencoder.model_validate({**fields, "path": str(path.absolute())})
    codec = AutoencoderKL(section)
    found = read_tokenizer(section, codec, base=Path())
    codec.load_state_dict(to_ours(section, found.tensors, codec))
    return codec, found.remarks
