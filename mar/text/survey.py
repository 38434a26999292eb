"""What an encoder makes of the captions of a data set: how long they are, what is not known."""

import torch

from mar.text.cache import Captions
from mar.text.encoder import TextEncoder


PART = 8192  # captions at a time
MANY = 0.05  # share of captions with unknown words, from which on it is said
SHOWN = 10


class Survey:
    """All captions of images to train on, read by an encoder; each counts as often as it is used.

    Attributes:
        num_captions: How many there are.
        mean_tokens: Tokens of a caption, none cut.
        kept_tokens: Tokens of all captions that are used, each caption once.
        share_cut: The share of captions that have more tokens than are used.
        share_unknown: The share of captions with words that are not known.
        share_empty: The share of captions of which nothing is known.
    """

    def __init__(self, captions: Captions, encoder: TextEncoder, count: int) -> None:
        """Read all captions.

        Args:
            captions: They.
            encoder: What reads them.
            count: Tokens of a caption that a generator takes.
        """
        self._encoder, self._count = encoder, count
        self._unknown: dict[str, None] = {}
        lengths: list[int] = []
        strange: list[bool] = []
        for numbers in torch.split(torch.arange(captions.num_trained), PART):
            for tokens, unknown in encoder.tokenise(captions.texts(numbers)):
                lengths.append(len(tokens))
                strange.append(bool(unknown))
                if len(self._unknown) < SHOWN:
                    self._unknown |= dict.fromkeys(unknown)
        uses = captions.uses()
        self.num_captions = int(uses.sum())
        length = torch.tensor(lengths)
        self.kept_tokens = int(length.clamp(max=encoder.limit(count)).sum())
        self.mean_tokens = self._mean(length, uses)
        self.share_cut = self._mean(length > encoder.limit(count), uses)
        self.share_empty = self._mean(length == 0, uses)
        self.share_unknown = self._mean(torch.tensor(strange), uses)

    def _mean(self, values: torch.Tensor, uses: torch.Tensor) -> float:
        return float((values * uses).sum().double() / self.num_captions)

    def metrics(self) -> dict[str, int | float]:
        """Return the numbers."""
        return {
            "num_captions": self.num_captions,
            "mean_tokens": self.mean_tokens,
            "share_cut": self.share_cut,
            "share_unknown": self.share_unknown,
        }

    def remarks(self) -> list[str]:
        """Say what was found, and what of it may be a mistake, a sentence each."""
        encoder = self._encoder
        said = [
            f"{self.num_captions} captions to train on, {encoder.summary}, "
            f"{self.mean_tokens:.1f} tokens in a caption; {self.share_cut:.1%} of the captions "
            f"have more than {encoder.limit(self._count)} tokens "
            f"({encoder.limit_name(self._count)}) and are cut"
        ]
        if self.share_unknown > MANY:
            some = ", ".join(list(self._unknown)[:SHOWN])
            said.append(
                f"{self.share_unknown:.1%} of the captions have words that are not known and "
                f"{encoder.unknown}, as {some}"
            )
        if self.share_empty:
            said.append(
                f"nothing is known of {self.share_empty:.1%} of the captions, whose images are "
                "trained without a text"
            )
        return said
