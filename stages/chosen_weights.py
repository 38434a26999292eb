"""The generator with the weights that `sample.weights` names."""

from collections.abc import Callable
from pathlib import Path

from mar.averaging.choice import WeightsChoice
from mar.averaging.rebuild import fit_warning, rebuild
from mar.model.mar import MAR
from mar.model.saved import load_mar


def load(folder: Path, choice: WeightsChoice, tokenizer: str, say: Callable[[str], None]) -> MAR:
    """Return the generator, ready to generate.

    Args:
        folder: Where the stage `train_generator` wrote.
        choice: Which weights.
        tokenizer: The digest of the tokenizer of its latents.
        say: Takes what there is to know of a rebuilt average.

    Raises:
        ValueError: a file is missing or damaged, belongs to another tokenizer, or holds no averages
            to rebuild one from.
    """
    name = "generator" if choice == "raw" else "ema"
    model = load_mar(folder / f"{name}.safetensors", tokenizer)
    if isinstance(choice, str):
        return model
    found = rebuild(model, folder / "averages", choice)
    if warning := fit_warning(found, choice):
        say(warning)
    return model
