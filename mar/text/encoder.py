"""What all text encoders have in common.

Shapes: B texts, K tokens of a text.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Shaped
from torch import Tensor

from mar.config import Config
from mar.text.token_files import Dtype


class Tokens(NamedTuple):
    """A text cut into tokens.

    Attributes:
        numbers: All its tokens; none where nothing of the text is known.
        unknown: The words in it that are not known.
    """

    numbers: list[int]
    unknown: list[str]


class CacheForm(NamedTuple):
    """How tokens are kept in files.

    Attributes:
        dtype: Their number type.
        shard_captions: Captions in a file.
    """

    dtype: Dtype
    shard_captions: int


class TextEncoder(ABC):
    """Makes tokens of texts.

    Attributes:
        token_kind: What a generator is given of a token: the number of a word, counted from 1, or
            an embedding.
        unknown: What becomes of words that are not known, for messages.
    """

    token_kind: ClassVar[Literal["words", "embeddings"]]
    unknown: ClassVar[str]

    @property
    @abstractmethod
    def size(self) -> int:
        """How many words are known, or the channels of an embedding."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """A digest of all that decides what a text becomes; a generator's file holds it."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """What it is, in a few words."""

    @property
    def cache(self) -> CacheForm | None:
        """How the tokens of captions are kept in files; None makes them anew in each step."""
        return CacheForm("int32", 65_536)

    @property
    def added_tokens(self) -> int:
        """How many tokens are added to each text, such as one that ends it."""
        return 0

    def limit(self, count: int) -> int:
        """Return how many tokens of a text are used, where a generator takes `count`."""
        return count

    def check_count(self, count: int) -> None:
        """Check that a generator takes enough tokens of a text for some to be its own.

        Args:
            count: Tokens that the generator takes.

        Raises:
            ValueError: the tokens that are added to each text would take all of them.
        """
        if count <= (added := self.added_tokens):
            raise ValueError(
                f"generator.condition_tokens: must be at least {added + 1}, as the tokenizer adds "
                f"{added} tokens to each text, got {count}"
            )

    def limit_name(self, count: int) -> str:
        """Return what sets this limit, for messages."""
        return "generator.condition_tokens"

    def to(self, device: torch.device) -> "TextEncoder":
        """Compute on a device from now on, where there is something to compute."""
        return self

    @abstractmethod
    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Return all tokens of each text, beyond those that are used."""

    @abstractmethod
    def encode(self, texts: Sequence[str], count: int) -> Shaped[Tensor, "B K ..."]:
        """Return the first `count` tokens of each text, with zeros behind the last.

        They are (B, K) numbers or (B, K, E) embeddings, on the device of `to`.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `TextSection.restore` makes it of again; it goes into a JSON file."""


class TextSection(Config):
    """Section `text` of `params.yaml`; null where images are conditioned on classes."""

    def learn(self, captions: Iterable[str], *, base: Path) -> TextEncoder:
        """Return the encoder for captions of images to train on.

        Args:
            captions: They.
            base: Where the paths in the section begin, if they are relative.

        Raises:
            ValueError: none can be made of them, or a file that it needs is not what it must be.
        """
        raise NotImplementedError

    def check_files(self, *, base: Path) -> None:
        """Look whether the files that it needs are there, without reading what is long.

        Args:
            base: Where the paths in the section begin, if they are relative.

        Raises:
            ValueError: one is missing, or not what it must be.
        """

    def restore(self, description: dict[str, Any], *, base: Path) -> TextEncoder:
        """Return the encoder that was described; files are opened once they are needed."""
        raise NotImplementedError
