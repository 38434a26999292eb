"""The text encoder `words`: the words of the training captions, each with an embedding to learn.

It needs no file and no network. What a word means, the generator learns from the images.

Shapes: B texts, K tokens of a text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from mar.text.encoder import TextEncoder, TextSection


# Scripts without blanks between words (Chinese, Japanese kana, Thai, Lao, Khmer) by letter.
UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+(?:['\u2019][^\W{UNSPACED}]+)*")


class WordsConfig(TextSection):
    """Words with learnt embeddings."""

    kind: Literal["words"] = Field(description="the words of the training captions")
    min_count: int = Field(
        ge=1, description="captions that a word must be in; rarer words are left out"
    )

    def learn(self, captions: Iterable[str]) -> "Words":
        """Number the words, the most frequent first."""
        counts = Counter(word for text in captions for word in set(split(text)))
        kept = [word for word, count in counts.items() if count >= self.min_count]
        if not kept:
            raise ValueError(
                f"text.min_count: no word is in {self.min_count} of the training captions, which "
                f"have {len(counts)} words"
            )
        return Words(sorted(kept, key=lambda word: (-counts[word], word)))

    def restore(self, description: dict[str, Any]) -> "Words":
        """Return the encoder of these words."""
        return Words(description["words"])


class Words(TextEncoder):
    """Words by number."""

    token_kind: ClassVar[Literal["words"]] = "words"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._numbers = {word: number for number, word in enumerate(words, start=1)}

    @property
    def size(self) -> int:
        """How many words there are."""
        return len(self.words)

    def tokenise(self, text: str) -> tuple[list[int], list[str]]:
        """Return the numbers of the known words, and the others."""
        words = split(text)
        known = [self._numbers[word] for word in words if word in self._numbers]
        return known, [word for word in words if word not in self._numbers]

    def encode(self, texts: Sequence[str], count: int) -> Int[Tensor, "B K"]:
        """Return the numbers of the first `count` known words of each text, then zeros."""
        encoded = torch.zeros(len(texts), count, dtype=torch.long)
        for row, text in zip(encoded, texts, strict=True):
            numbers = self.tokenise(text)[0][:count]
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        return encoded

    def describe(self) -> dict[str, Any]:
        """Return the words."""
        return {"words": self.words}


def split(text: str) -> list[str]:
    """Return the words of a text, without regard to capitals and to how accents are stored."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())
