"""The text encoder `words`: the words of the training captions, each with an embedding to learn.

It needs no file and no network. What a word means, the generator learns from the images.

Shapes: B texts, K tokens of a text.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from mar.text.encoder import TextEncoder, TextSection, Tokens


# Scripts without blanks between words (Chinese, Japanese kana, Thai, Lao, Khmer) by letter.
UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Vowel signs and accents, which Python does not count as letters; emoji's selectors are left out.
MARKS = "".join(
    chr(code)
    for code in (*range(0x300, 0xFE00), *range(0xFE10, 0x1F000))
    if unicodedata.category(chr(code)) in ("Mn", "Mc")
)
PART = rf"[^\W{UNSPACED}]+(?:[{MARKS}][^\W{UNSPACED}]*)*"
WORD = re.compile(rf"[{UNSPACED}]|{PART}(?:['\u2019\u200c\u200d]{PART})*")  # and joiners


class WordsConfig(TextSection):
    """Words with learnt embeddings."""

    kind: Literal["words"] = Field(description="the words of the training captions")
    min_count: int = Field(
        ge=1, description="captions that a word must be in; rarer words are left out"
    )

    def learn(self, captions: Iterable[str], *, base: Path) -> "Words":
        """Number the words, the most frequent first."""
        counts = Counter(word for text in captions for word in set(split(text)))
        kept = [word for word, count in counts.items() if count >= self.min_count]
        if not kept:
            raise ValueError(
                f"text.min_count: no word is in {self.min_count} of the training captions, which "
                f"have {len(counts)} words"
            )
        return Words(sorted(kept, key=lambda word: (-counts[word], word)))

    def restore(self, description: dict[str, Any], *, base: Path) -> "Words":
        """Return the encoder of these words."""
        return Words(description["words"])


class Words(TextEncoder):
    """Words by number."""

    token_kind: ClassVar[Literal["words", "embeddings"]] = "words"
    unknown: ClassVar[str] = "left out"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(words, start=1)}

    @property
    def size(self) -> int:
        """How many words there are."""
        return len(self.words)

    @property
    def identity(self) -> str:
        """The digest of the words and their order."""
        return hashlib.sha256(json.dumps(self.words).encode()).hexdigest()

    @property
    def summary(self) -> str:
        """How many words there are."""
        return f"{len(self.words)} words"

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the numbers of the known words of each text, and its others."""
        return [self._tokenise(text) for text in texts]

    def _tokenise(self, text: str) -> Tokens:
        words = split(text)
        known = [self._numbers[word] for word in words if word in self._numbers]
        return Tokens(known, [word for word in words if word not in self._numbers])

    def encode(self, texts: Sequence[str], count: int) -> Int[Tensor, "B K"]:
        """Return the numbers of the first `count` known words of each text, then zeros."""
        encoded = torch.zeros(len(texts), count, dtype=torch.long)
        for row, text in zip(encoded, texts, strict=True):
            numbers = self._tokenise(text).numbers[:count]
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        return encoded

    def describe(self) -> dict[str, Any]:
        """Return the words."""
        return {"words": self.words}


def split(text: str) -> list[str]:
    """Return the words of a text, without regard to capitals and to how accents are stored."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())
