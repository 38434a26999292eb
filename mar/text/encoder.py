"""What all text encoders have in common.

Shapes: B texts, K tokens of a text.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from jaxtyping import Shaped
from torch import Tensor

from mar.config import Config


class TextEncoder(ABC):
    """Makes tokens of texts.

    Attributes:
        token_kind: What a token is: the number of a word, counted from 1.
        size: How many words are known.
    """

    token_kind: ClassVar[Literal["words"]]

    @property
    @abstractmethod
    def size(self) -> int:
        """How many words are known."""

    @abstractmethod
    def tokenise(self, text: str) -> tuple[list[int], list[str]]:
        """Return all tokens of a text, and the words in it that are not known."""

    @abstractmethod
    def encode(self, texts: Sequence[str], count: int) -> Shaped[Tensor, "B K"]:
        """Return the first `count` tokens of each text, with zeros behind the last."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `TextSection.restore` makes it of again; it goes into a JSON file."""


class TextSection(Config):
    """Section `text` of `params.yaml`; null where images are conditioned on classes."""

    def learn(self, captions: Iterable[str]) -> TextEncoder:
        """Return the encoder for captions of images to train on.

        Raises:
            ValueError: none can be made of them.
        """
        raise NotImplementedError

    def restore(self, description: dict[str, Any]) -> TextEncoder:
        """Return the encoder that was described."""
        raise NotImplementedError
