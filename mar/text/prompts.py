"""The prompts of section `sample`: a list, a file with one on each line, or held-out captions."""

from collections.abc import Sequence
from pathlib import Path

from mar.text.encoder import TextEncoder


def find_prompts(
    prompts: str | Sequence[str] | None, held_out: Sequence[str], *, base: Path
) -> list[str]:
    """Return the prompts that key `sample.prompts` names, white space as one blank each.

    Args:
        prompts: A file, the prompts, or None for those of held-out images.
        held_out: A caption of each of them.
        base: Where the path of a file begins, if it is relative.

    Raises:
        ValueError: there is no such file, or it has no prompts.
    """
    if prompts is None:
        return list(held_out)
    if isinstance(prompts, str):
        path = base / Path(prompts).expanduser()
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"sample.prompts: {path} cannot be read: {error}") from None
        prompts = [line for line in lines if line.strip()]
        if not prompts:
            raise ValueError(f"sample.prompts: {path} has no prompts, expected one on each line")
    return [" ".join(prompt.split()) for prompt in prompts]


def check_prompts(prompts: Sequence[str], encoder: TextEncoder, count: int) -> list[str]:
    """Say what of prompts a generator will not heed, a sentence each.

    Args:
        prompts: The prompts.
        encoder: Makes their tokens.
        count: How many of them the generator takes.

    Raises:
        ValueError: a prompt is left empty; an empty one would be an unconditional image.
    """
    long: list[str] = []
    unknown: dict[str, None] = {}
    for prompt in prompts:
        tokens, missing = encoder.tokenise(prompt)
        unknown |= dict.fromkeys(missing)
        if not tokens:
            reason = f", as none of {', '.join(missing)} is known" if missing else ""
            raise ValueError(f"sample.prompts: nothing is left of the prompt {prompt!r}{reason}")
        if len(tokens) > count:
            long.append(prompt)
    said: list[str] = []
    if unknown:
        some = ", ".join(list(unknown)[:10])
        said.append(f"{len(unknown)} words of the prompts are not known and left out: {some}")
    if long:
        said.append(
            f"{len(long)} of {len(prompts)} prompts have more than {count} tokens "
            f"(generator.condition_tokens) and are cut, as {long[0]!r}"
        )
    return said
