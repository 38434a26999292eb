"""What images are conditioned on, as the K condition tokens in front of their own (MAR: buffer).

A class fills all of them with its embedding. Of a text, each token has a slot of its own. So no
block and no mask has to know what a condition is.

What is given for a sample is one tensor: the number of its class, or its text, of K tokens with
zeros behind the last one: (K) numbers of words, counted from 1, or (K, E) embeddings.

Shapes: B batch, K condition tokens, D width, E channels of an embedding.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from mar.linear import Linear
from mar.text.present import is_present


@dataclass(frozen=True)
class TextShape:
    """What is given of each token of a text.

    Attributes:
        kind: The number of a word, or an embedding.
        size: How many words are known, or the channels of an embedding.
        encoder: The identity of the text encoder that makes them; None where it is not known.
    """

    kind: Literal["words", "embeddings"]
    size: int
    encoder: str | None = None


class ConditionTokens(nn.Module, ABC):
    """Layers that make the condition tokens."""

    @abstractmethod
    def forward(
        self, given: Shaped[Tensor, "B ..."], dropped: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B K D"]:
        """Return the condition tokens; of what is dropped, those of an unconditional sample."""

    @abstractmethod
    def nothing(self, batch: int) -> Shaped[Tensor, "B ..."]:
        """Return what may be given for samples whose condition is dropped."""

    def adopt(self, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights with which these layers do what those of a released model do.

        Args:
            released: Its tensors under the names of `ClassTokens`, or some of them.
        """
        return dict(released)


class ClassTokens(ConditionTokens):
    """K times the embedding of the class, or the null vector."""

    def __init__(self, num_classes: int, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.class_embedding = nn.Embedding(num_classes, width)
        self.null_embedding = nn.Parameter(torch.empty(1, width))

    def forward(
        self, given: Int[Tensor, " B"], dropped: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B K D"]:
        """Return the condition tokens."""
        each = torch.where(dropped[:, None], self.null_embedding, self.class_embedding(given))
        return each[:, None].expand(-1, self.count, -1)

    def nothing(self, batch: int) -> Int[Tensor, " B"]:
        """Return the first class."""
        return torch.zeros(batch, dtype=torch.long, device=self.null_embedding.device)


class TextTokens(ConditionTokens):
    """c_k = pad_k + m_k e_k: a learnt vector for each slot, plus the text's token if there is one.

    m_k is 0 behind the end of the text and everywhere in a dropped one. So an unconditional sample
    has the learnt vectors alone, which is also what an empty text has.
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.pads = nn.Parameter(torch.empty(count, width))

    def forward(
        self, given: Shaped[Tensor, "B K ..."], dropped: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B K D"]:
        """Return the condition tokens."""
        present = is_present(given) & ~dropped[:, None]  # (B, K)
        return self.pads + present[..., None] * self.embed(given)

    @abstractmethod
    def embed(self, given: Shaped[Tensor, "B K ..."]) -> Float[Tensor, "B K D"]:
        """Return e_k; where there is no token, anything."""

    def adopt(self, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Begin with the null vector in every slot, and with texts that add nothing to it."""
        null = released["null_embedding"].expand(self.count, -1)
        nothing = {name: torch.zeros_like(value) for name, value in self.state_dict().items()}
        return {**nothing, "pads": null.clone()}


class WordTokens(TextTokens):
    """Words with learnt embeddings, the class embedding generalised."""

    def __init__(self, num_words: int, width: int, count: int) -> None:
        super().__init__(width, count)
        self.word_embedding = nn.Embedding(num_words, width)

    def embed(self, given: Int[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
        """Return the embedding of each word."""
        return self.word_embedding((given - 1).clamp(min=0))

    def nothing(self, batch: int) -> Int[Tensor, "B K"]:
        """Return empty texts."""
        return torch.zeros(batch, self.count, dtype=torch.long, device=self.pads.device)


class EmbeddingTokens(TextTokens):
    """e_k = W LN(x_k) of the frozen encoder's x_k, whose channels differ much in scale."""

    def __init__(self, channels: int, width: int, count: int) -> None:
        super().__init__(width, count)
        self.channels = channels
        self.text_proj = Linear(channels, width, bias=False)

    def embed(self, given: Float[Tensor, "B K E"]) -> Float[Tensor, "B K D"]:
        """Return the projected embedding of each token."""
        return self.text_proj(functional.layer_norm(given.float(), given.shape[2:], eps=1e-6))

    def nothing(self, batch: int) -> Float[Tensor, "B K E"]:
        """Return empty texts."""
        return torch.zeros(batch, self.count, self.channels, device=self.pads.device)


def condition_tokens(
    num_classes: int, text: TextShape | None, width: int, count: int
) -> ConditionTokens:
    """Return the layers for a text of a kind or, without one, for classes."""
    if text is None:
        return ClassTokens(num_classes, width, count)
    return TEXT_TOKENS[text.kind](text.size, width, count)


TEXT_TOKENS = {"words": WordTokens, "embeddings": EmbeddingTokens}
