"""The prompts of section `sample`: a list, a file, or held-out captions.

A file has a prompt on each line. If its name ends in `.jsonl`, in whatever capitals, it is one of
GenEval's: each line is a JSON object whose `prompt` is the text, and the others say what its image
must show.
"""

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mar.scenes import wanted
from mar.text.encoder import TextEncoder


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
        text: Of which images are generated, white space as one blank each.
        geneval: Its line in GenEval's file, if it is from one.
        source: The image whose caption it is, if it was drawn among those held out.
        place: Its file and line, if it is from a file.
    """

    text: str
    geneval: str | None = None
    source: str | None = None
    place: str | None = None

    def named(self, problem: str) -> str:
        """Return what is wrong with it, behind its place if it has one."""
        return problem if self.place is None else f"{self.place}: {problem}"


def find_prompts(
    prompts: str | Sequence[str] | None, held_out: Sequence[str], *, base: Path
) -> list[Prompt]:
    """Return the prompts that key `sample.prompts` names.

    Args:
        prompts: A file, the prompts, or None for those of held-out images.
        held_out: A caption of each of them.
        base: Where the path of a file begins, if it is relative.

    Raises:
        ValueError: there is no such file, or what `read_prompts` raises.
    """
    if isinstance(prompts, str):
        try:
            return read_prompts(base / Path(prompts).expanduser())
        except ValueError as error:
            raise ValueError(f"sample.prompts: {error}") from None
    return [Prompt(tidy(prompt)) for prompt in (held_out if prompts is None else prompts)]


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file.

    Raises:
        ValueError: it cannot be read, has no prompts, or a line is not as GenEval's files have it.
    """
    try:
        content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    is_geneval = is_geneval_file(path)
    found: list[Prompt] = []
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for number, encoded in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        try:
            line = encoded.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: {error}, expected UTF-8 text") from None
        if line.strip():
            read = _read_geneval(place, line) if is_geneval else Prompt(tidy(line), place=place)
            found.append(read)
    if not found:
        raise ValueError(f"{path} has no prompts, expected one on each line")
    return found


def is_geneval_file(path: str | Path) -> bool:
    """Return whether a file of prompts is one of GenEval's, as its name says."""
    return Path(path).suffix.lower() == ".jsonl"


def _read_geneval(place: str, line: str) -> Prompt:
    """Read a line of GenEval's file.

    Raises:
        ValueError: keys are missing or not of the types that they have there.
    """
    expected = '{"tag": ..., "include": [{"class": ..., "count": ...}, ...], "prompt": ...}'
    try:
        text = wanted.Prompt.read(line).text
    except ValueError as error:
        raise ValueError(f"{place}: {error}; expected {expected}") from None
    return Prompt(tidy(text), json.dumps(json.loads(line), ensure_ascii=False), place=place)


def tidy(prompt: str) -> str:
    """Return a prompt with white space as one blank each, and none around it."""
    return " ".join(prompt.split())


def keep_known(
    captions: Sequence[Prompt], encoder: TextEncoder, num_used: int
) -> tuple[list[Prompt], list[str]]:
    """Leave out captions of which nothing is known.

    Args:
        captions: Captions of held-out images, in the order in which they are used.
        encoder: Makes their tokens.
        num_used: How many captions are used; those behind them are kept unseen.

    Returns:
        The others, and what is to be said: nothing, or how many are left out.

    Raises:
        ValueError: no caption is left.
    """
    known: list[Prompt] = []
    seen = 0
    while len(known) < num_used and seen < len(captions):
        part = captions[seen : seen + num_used - len(known)]
        found = encoder.tokenise([caption.text for caption in part])
        pairs = zip(part, found, strict=True)
        known += [caption for caption, tokens in pairs if caption.text and tokens.numbers]
        seen += len(part)
    if not known:
        raise ValueError(
            f"nothing is known of any of {seen} held-out captions; write prompts in sample.prompts"
        )
    left_out = seen - len(known)
    said = [f"{left_out} of {seen} held-out captions are left out, as nothing of them is known"]
    return known + list(captions[seen:]), said if left_out else []


def check_prompts(prompts: Sequence[Prompt], encoder: TextEncoder, count: int) -> list[str]:
    """Say what of prompts a generator will not heed, a sentence each.

    Args:
        prompts: The prompts.
        encoder: Makes their tokens.
        count: How many of them the generator takes.

    Raises:
        ValueError: a prompt is left empty, as which it would be an unconditional image; the message
            has its file and line, if it is from one.
    """
    long: list[str] = []
    unknown: dict[str, None] = {}
    used = encoder.limit(count)
    found = encoder.tokenise([prompt.text for prompt in prompts])
    for prompt, (tokens, missing) in zip(prompts, found, strict=True):
        unknown |= dict.fromkeys(missing)
        if not tokens or not prompt.text:
            reason = f", as none of {', '.join(missing)} is known" if missing else ""
            raise ValueError(prompt.named(f"nothing is left of the prompt {prompt.text!r}{reason}"))
        if len(tokens) > used:
            long.append(prompt.text)
    said: list[str] = []
    if unknown:
        some = ", ".join(list(unknown)[:10])
        said.append(
            f"{len(unknown)} words of the prompts are not known and {encoder.unknown}: {some}"
        )
    if long:
        said.append(
            f"{len(long)} of {len(prompts)} prompts have more than {used} tokens "
            f"({encoder.limit_name(count)}) and are cut, as {long[0]!r}"
        )
    return said
