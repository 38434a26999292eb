"""Write tokenizer and generator as files of the released layout: `python -m stages.export FOLDER`.

FOLDER then holds `kl16.ckpt` and `checkpoint-last.pth`, which the original code (LTH14/mar) takes
as `--vae_path FOLDER/kl16.ckpt --resume FOLDER`. Weights that were imported come out bit for bit.
The names are the same whatever the sizes; the original code builds KL-16 alone. A generator with
texts is none of the original code: its file holds all that `stages.generate` needs for prompts.

It is no stage of `dvc.yaml`: nothing here depends on what others do with the files.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mar.data.class_names import read_class_names
from mar.files import seal
from mar.latents.info import LatentsInfo
from mar.model.mar import MAR
from mar.model.saved import load_mar
from mar.released.names import to_released
from mar.released.pickles import write_generator, write_tokenizer
from mar.released.shapes import check_layout
from mar.sampling.config import SampleConfig
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import TOKENIZERS, load_tokenizer
from stages import params
from stages.exported import describe


INFO = Path("out/encode/latents.json")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
GENERATOR = Path("out/train_generator/generator.safetensors")
AVERAGE = Path("out/train_generator/ema.safetensors")
ENCODER = Path("out/encode_text/encoder.json")
CLASSES = Path("out/prepare/classes.json")
SCALE = 0.2325  # the constant in the original code


def export(folder: Path) -> str:
    """Write both files and return what there is to know about them.

    Raises:
        ValueError: there is no released layout for them, or the stages that make them have not run;
            nothing was written.
    """
    codec = load_tokenizer(TOKENIZER)
    if not codec.config.has_released_layout:
        known = [repr(name) for name, kind in TOKENIZERS.items() if kind.config.has_released_layout]
        raise ValueError(
            f"tokenizer.kind: must be {' or '.join(known)} in the released layout, "
            f"got {codec.config.kind!r}"
        )
    digest = seal.digest(TOKENIZER)
    info = LatentsInfo.read(INFO)
    info.check({"tokenizer": digest})
    models: list[MAR] = []
    for path in (GENERATOR, AVERAGE):
        models.append(load_mar(path, digest))
        check_layout(models[-1].config)
    has_texts = models[0].text is not None
    description = _describe(models[0], codec, info) if has_texts else None
    write_tokenizer(folder / "kl16.ckpt", codec.state_dict())
    path = folder / "checkpoint-last.pth"
    model, ema = (to_released(model.state_dict()) for model in models)
    write_generator(path, model, ema, description)
    told = f"{folder} holds kl16.ckpt and {path.name}"
    if has_texts:
        return f"{told}; stages.generate takes them with prompts, LTH14/mar has no texts"
    return f"{told}{_warn(1 / info.latent_std)}"


def _describe(mar: MAR, codec: Tokenizer, info: LatentsInfo) -> dict[str, Any]:
    """Return what prompts need, to be kept in the generator's file."""
    return describe(
        mar,
        codec,
        seal.read_json(ENCODER),
        latent_std=info.latent_std,
        class_names=read_class_names(CLASSES),
        sample=params.load("sample", SampleConfig),
    )


def _warn(scale: float) -> str:
    """Tell of a scale that the original code does not have."""
    if abs(scale / SCALE - 1) < 1e-6:
        return ""
    return (
        f"; its latents were multiplied by {scale:.6g}, write that in the place of the {SCALE} of "
        f"the original code"
    )


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.export", description="Write weights in the layout of LTH14/mar."
    )
    parser.add_argument("folder", type=Path, help="where the two files are to be")
    try:
        told = export(parser.parse_args().folder)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"export: {error}\n")
        raise SystemExit(1) from None
    sys.stdout.write(f"{told}\n")


if __name__ == "__main__":
    main()
