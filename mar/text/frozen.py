"""The text encoder `transformers`: a frozen language model from a local folder.

T5, CLIP, SigLIP, BERT and their kind, and causal models such as Gemma and Llama, of which the
hidden states are taken. Each token of a text is an embedding, which the generator normalises and
projects (`mar.model.conditions.EmbeddingTokens`).

Of `transformers`, nothing is imported before the first text is encoded.

Shapes: B texts, K tokens of a text, E channels of an embedding.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from mar.config import Config, PathText, Sha256
from mar.text.encoder import CacheForm, TextEncoder, TextSection, Tokens
from mar.text.encoder_folder import EncoderFolder, open_folder
from mar.text.language_model import (
    LanguageModel,
    cut_tokens,
    load_model,
    load_tokenizer,
    read_tokens,
)


class CacheConfig(Config):
    """How the embeddings of captions are kept."""

    dtype: Literal["float16", "bfloat16", "float32"] = Field(
        description="number type of the embeddings in files"
    )
    shard_captions: int = Field(gt=0, description="captions in a file; memory holds one file's")


class FrozenConfig(TextSection):
    """A language model, frozen."""

    kind: Literal["transformers"] = Field(description="a folder that Hugging Face's library reads")
    path: PathText = Field(
        description="the folder with config.json and model.safetensors, absolute or from the "
        "repository"
    )
    tokenizer: PathText | None = Field(
        description="the folder with tokenizer.json; null is that of the weights"
    )
    sha256: Sha256 | None = Field(
        description="of the files that are used, as encode_text says it; null checks nothing"
    )
    layer: int = Field(
        le=-1,
        description="whose hidden states are taken: -1 is the last one, normalised as the model "
        "does, -2 the block before it, and so on",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        description="number type of its weights and arithmetic; float16 not for T5"
    )
    batch_size: int = Field(gt=0, description="texts encoded at a time")
    cache: CacheConfig | None = Field(
        description="files with the embeddings of all captions; null encodes the captions of each "
        "batch while the generator is trained, with the encoder on the same device"
    )

    def learn(self, captions: Iterable[str], *, base: Path) -> "FrozenEncoder":
        """Open the folder and measure its digest; captions teach it nothing."""
        folder = self._folder(base)
        found = folder.digest()
        expected = self.sha256 and self.sha256.lower()
        if expected not in (None, found):
            raise ValueError(
                f"text.sha256: {folder.path} has the SHA-256 {found}, expected {expected}"
            )
        model = load_model(folder, self.precision, self.layer)
        shape = EncoderShape(found, folder.model_type, model.size, model.max_tokens)
        return FrozenEncoder(self, shape, base, Opened(model, load_tokenizer(folder)))

    def check_files(self, *, base: Path) -> None:
        """Look at the folder, whose weights are not read."""
        self._folder(base)

    def restore(self, description: dict[str, Any], *, base: Path) -> "FrozenEncoder":
        """Return the encoder, whose folder is opened once a text is to be encoded."""
        return FrozenEncoder(self, EncoderShape(**description), base)

    def open(self, shape: "EncoderShape", base: Path) -> "Opened":
        """Read the folder, which must be the one that captions were encoded with.

        Raises:
            ValueError: it is missing, or another one.
        """
        folder = self._folder(base)
        if (found := folder.digest()) != shape.digest:
            raise ValueError(
                f"text.path: {folder.path} has the SHA-256 {found}, and the captions were encoded "
                f"with {shape.digest}; encode_text has to run again"
            )
        model = load_model(folder, self.precision, self.layer)
        return Opened(model, load_tokenizer(folder))

    def _folder(self, base: Path) -> EncoderFolder:
        tokenizer = None if self.tokenizer is None else base / Path(self.tokenizer).expanduser()
        return open_folder(base / Path(self.path).expanduser(), tokenizer)


class EncoderShape(NamedTuple):
    """What is known of an encoder without its folder.

    Attributes:
        digest: The SHA-256 of its files.
        model_type: Which model it is.
        size: Channels of an embedding.
        max_tokens: The most tokens that it reads; None if there is no limit.
    """

    digest: str
    model_type: str
    size: int
    max_tokens: int | None


class Opened(NamedTuple):
    """An encoder in memory: the model, and its tokenizer of `transformers`."""

    model: LanguageModel
    tokenizer: Any


class FrozenEncoder(TextEncoder):
    """A frozen language model, loaded when it is needed first."""

    token_kind: ClassVar[Literal["words", "embeddings"]] = "embeddings"
    unknown: ClassVar[str] = "read as an unknown token"

    def __init__(
        self,
        section: FrozenConfig,
        shape: EncoderShape,
        base: Path,
        opened: Opened | None = None,
    ) -> None:
        """Describe an encoder.

        Args:
            section: Section `text`.
            shape: What is known of the encoder.
            base: Where the paths of the section begin, if they are relative.
            opened: The encoder in memory, if it is there already.
        """
        self._section, self._shape, self._base = section, shape, base
        self._opened = opened
        self._device = torch.device("cpu")

    @property
    def size(self) -> int:
        """The channels of an embedding."""
        return self._shape.size

    @property
    def identity(self) -> str:
        """The digest of the folder and the layer."""
        content = json.dumps([self._shape.digest, self._section.layer])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def summary(self) -> str:
        """The kind of model and its digest."""
        shape = self._shape
        return f"{shape.model_type} with {shape.size} channels (SHA-256 {shape.digest})"

    @property
    def cache(self) -> CacheForm | None:
        """How embeddings are kept in files."""
        config = self._section.cache
        return config and CacheForm(config.dtype, config.shard_captions)

    def limit(self, count: int) -> int:
        """Return how many tokens of a text are used, where a generator takes `count`."""
        return min(count, self._shape.max_tokens or count)

    @property
    def added_tokens(self) -> int:
        """How many tokens the tokenizer adds to each text."""
        return int(self._open().tokenizer.num_special_tokens_to_add())

    def limit_name(self, count: int) -> str:
        """Return what sets this limit, for messages."""
        if self.limit(count) < count:
            return f"the most that {self._shape.model_type} reads"
        return super().limit_name(count)

    def to(self, device: torch.device) -> "FrozenEncoder":
        """Compute on a device from now on."""
        self._device = device
        if self._opened is not None:
            self._opened.model.network.to(device)
        return self

    def _open(self) -> Opened:
        """Return the encoder in memory; it is read now if it was not before."""
        if self._opened is None:
            self._opened = self._section.open(self._shape, self._base)
            self._opened.model.network.to(self._device)
        return self._opened

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Return all tokens of each text, with those that the model adds, and unknown words.

        Raises:
            ValueError: the model has no embedding for a token of a text.
        """
        return read_tokens(*self._open(), texts)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], count: int) -> Float[Tensor, "B K E"]:
        """Return the embeddings of the first `count` tokens of each text, then zeros.

        A text is cut before it is read, and its last token is then the one that ends a text. Texts
        of like length are read together, the longest first.
        """
        model, tokenizer = self._open()
        fill = tokenizer.pad_token_id or 0
        fill = fill if fill < model.vocab_size else 0  # masked, where a tokenizer has tokens more
        found = torch.zeros(
            len(texts), count, self.size, dtype=model.dtype, device=self._device
        )  # (B, K, E)
        numbers, present = self._numbers(texts, self.limit(count))
        order = np.argsort(-present.sum(axis=1), kind="stable")
        order = order[: np.count_nonzero(present.any(axis=1))]  # empty texts stay zeros
        for start in range(0, len(order), self._section.batch_size):
            part = order[start : start + self._section.batch_size]
            width = int(present[part].sum(axis=1).max())
            given = torch.tensor(numbers[part, :width], device=self._device)
            mask = torch.tensor(present[part, :width], device=self._device)
            hidden = model(given, mask, fill=fill)  # (B, K, E)
            found[torch.tensor(part, device=self._device), :width] = hidden * mask[..., None]
        return found

    def _numbers(
        self, texts: Sequence[str], limit: int
    ) -> tuple[Int[np.ndarray, "B K"], Bool[np.ndarray, "B K"]]:
        """Return the numbers of the first tokens of each text, and where there are any."""
        rows = [tokens.numbers for tokens in self.tokenise(texts)]
        long = [place for place, row in enumerate(rows) if len(row) > limit]
        again = cut_tokens(self._open().tokenizer, [texts[place] for place in long], limit)
        for place, row in zip(long, again, strict=True):
            rows[place] = row
        lengths = np.array([len(row) for row in rows], np.int64)
        present = np.arange(limit) < lengths[:, None]
        numbers = np.zeros((len(texts), limit), np.int64)
        numbers[present] = np.fromiter((number for row in rows for number in row), np.int64)
        return numbers, present

    def describe(self) -> dict[str, Any]:
        """Return what is known of it without its folder."""
        return self._shape._asdict()
