"""Write tokenizer and generator as files of the released layout: `python -m stages.export FOLDER`.

FOLDER then holds `kl16.ckpt` and `checkpoint-last.pth`, which the original code (LTH14/mar) takes
as `--vae_path FOLDER/kl16.ckpt --resume FOLDER`. Weights that were imported come out bit for bit.
The names are the same whatever the sizes; the original code builds KL-16 alone.

It is no stage of `dvc.yaml`: nothing here depends on what others do with the files.
"""

import argparse
import sys
from pathlib import Path

from mar.files import seal
from mar.latents.info import LatentsInfo
from mar.model.mar import MAR
from mar.model.saved import load_mar
from mar.released.names import to_released
from mar.released.pickles import write_generator, write_tokenizer
from mar.released.shapes import check_layout
from mar.tokenizers.registry import TOKENIZERS, load_tokenizer


INFO = Path("out/encode/latents.json")
TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
GENERATOR = Path("out/train_generator/generator.safetensors")
AVERAGE = Path("out/train_generator/ema.safetensors")
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
        if models[-1].text is not None:
            raise ValueError("text: must be null, as the released layout has classes alone")
    write_tokenizer(folder / "kl16.ckpt", codec.state_dict())
    path = folder / "checkpoint-last.pth"
    write_generator(path, *(to_released(model.state_dict()) for model in models))
    return f"{folder} holds kl16.ckpt and {path.name}{_warn(1 / info.latent_std)}"


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
