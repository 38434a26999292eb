"""Language models of `transformers` as text encoders: loaded from a folder, without a network.

Shapes: B texts, K tokens of a text, E channels of an embedding.
"""
# transformers is typed in part:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from mar.files import pretrained
from mar.text.encoder import Tokens
from mar.text.encoder_folder import EncoderFolder, Family


BLANKS = " \u2581\u0120"  # as SentencePiece and byte-level BPE write one


@dataclass(frozen=True)
class LanguageModel:
    """A model in evaluation mode, and how it is used.

    Attributes:
        network: The model of `transformers`.
        family: How it is used.
        layer: Whose hidden states are taken.
        size: Channels of an embedding.
        vocab_size: Tokens that have an embedding.
        max_tokens: The most tokens that it reads; None if there is no limit.
    """

    network: nn.Module
    family: Family
    layer: int
    size: int
    vocab_size: int
    max_tokens: int | None

    @property
    def dtype(self) -> torch.dtype:
        """The number type of its weights."""
        return next(self.network.parameters()).dtype

    def __call__(
        self, numbers: Int[Tensor, "B K"], present: Bool[Tensor, "B K"], *, fill: int
    ) -> Float[Tensor, "B K E"]:
        """Return the hidden states of all tokens; where there is none, anything.

        Args:
            numbers: The number of each token.
            present: Where there is one.
            fill: The number of the token that fills texts up.
        """
        width = numbers.shape[1]
        numbers = numbers.masked_fill(~present, fill)
        given: dict[str, Any] = {"attention_mask": present.long()}
        if self.family.fills_up:
            assert self.max_tokens is not None
            given = {}
            numbers = pad(numbers, (0, self.max_tokens - width), value=fill)
        found = self.network(
            input_ids=numbers, output_hidden_states=self.layer != -1, return_dict=True, **given
        )
        hidden = found.last_hidden_state if self.layer == -1 else found.hidden_states[self.layer]
        return hidden[:, :width]


def load_model(
    folder: EncoderFolder, precision: Literal["float32", "bfloat16", "float16"], layer: int
) -> LanguageModel:
    """Read the model of a folder.

    Args:
        folder: The folder.
        precision: The number type of the weights.
        layer: Whose hidden states are taken.

    Raises:
        ValueError: `transformers` is not installed or cannot read the folder, weights are missing,
            or the model is not for this number type or has no such layer.
    """
    family = folder.family
    if family.overflows and precision == "float16":
        raise ValueError(
            f"text.precision: must be 'bfloat16' or 'float32' for {folder.model_type}, whose "
            "activations exceed the range of float16, got 'float16'"
        )
    network = pretrained.load_model(
        family.model,
        folder.path,
        key="text.path",
        called=folder.model_type,
        dtype=getattr(torch, precision),
        **({"add_pooling_layer": False} if family.has_pooling else {}),
    )
    config = network.config.get_text_config()
    layers = int(config.num_hidden_layers)
    if layer < -layers:
        raise ValueError(
            f"text.layer: must be -{layers} to -1 for the {layers} layers of {folder.path}, "
            f"got {layer}"
        )
    positions = getattr(config, "max_position_embeddings", None)
    return LanguageModel(
        network,
        family,
        layer,
        int(config.hidden_size),
        int(config.vocab_size),
        positions and int(positions) - family.first_position,
    )


def load_tokenizer(folder: EncoderFolder) -> Any:
    """Read the tokenizer of a folder.

    Raises:
        ValueError: `transformers` cannot read it, or its tokens are not those of the model.
    """
    # transformers reads SigLIP 1's by sentencepiece alone, though there is a tokenizer.json.
    by_file = folder.tokenizer_class == "SiglipTokenizer"
    reader = "PreTrainedTokenizerFast" if by_file else "AutoTokenizer"
    tokenizer = pretrained.read(
        reader, folder.tokenizer, key="text.tokenizer", called="a tokenizer"
    )
    config = pretrained.read(
        "AutoConfig", folder.path, key="text.path", called="settings of a model"
    )
    if not tokenizer.is_fast:
        raise ValueError(f"text.tokenizer: {folder.tokenizer} has no tokenizer.json")
    known = int(config.get_text_config().vocab_size)
    if tokenizer.vocab_size > known:  # tokens added later are checked when a text has them
        raise ValueError(
            f"text.tokenizer: {folder.tokenizer} has {tokenizer.vocab_size} tokens, and "
            f"{folder.path} embeddings for {known}; it is the tokenizer of another model"
        )
    return tokenizer


def read_tokens(model: LanguageModel, tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Return all tokens of each text, with those that the model adds, and its unknown words.

    Raises:
        ValueError: the model has no embedding for a token, such as Gemma 3's for an image.
    """
    if not texts:
        return []
    rows: list[list[int]] = tokenizer(list(texts), verbose=False)["input_ids"]
    for text, row in zip(texts, rows, strict=True):
        if (largest := max(row, default=0)) >= model.vocab_size:
            raise ValueError(
                f"text.tokenizer: {text!r} has the token {tokenizer.convert_ids_to_tokens(largest)}"
                f" with the number {largest}, expected less than {model.vocab_size}, as many "
                "embeddings as the model has"
            )
    found = [Tokens(row if text.strip() else [], []) for text, row in zip(texts, rows, strict=True)]
    missing = tokenizer.unk_token_id
    if missing == tokenizer.eos_token_id:  # of tokenizers that know every byte
        return found
    # Where each token stands in its text takes time, and is seldom asked for.
    strange = [place for place, tokens in enumerate(found) if missing in tokens.numbers]
    if strange:
        again = tokenizer(
            [texts[place] for place in strange], return_offsets_mapping=True, verbose=False
        )
        for place, places in zip(strange, again["offset_mapping"], strict=True):
            found[place] = _with_unknown(tokenizer, texts[place], rows[place], places)
    return found


def cut_tokens(tokenizer: Any, texts: Sequence[str], limit: int) -> list[list[int]]:
    """Return the tokens of texts that have more than `limit`, cut as the model cuts texts."""
    if not texts:
        return []
    return tokenizer(list(texts), truncation=True, max_length=limit, verbose=False)["input_ids"]


def _with_unknown(
    tokenizer: Any, text: str, numbers: list[int], places: list[tuple[int, int]]
) -> Tokens:
    """Return the tokens of a text with unknown words; none if no word of it is known.

    Args:
        tokenizer: What has read it.
        text: The text.
        numbers: The number of each token.
        places: Where in the text each token begins and ends.
    """
    missing = tokenizer.unk_token_id
    words = [
        text[start:end].strip()
        for number, (start, end) in zip(numbers, places, strict=True)
        if number == missing
    ]
    others = {*numbers} - {*tokenizer.all_special_ids, missing}
    pieces: list[str] = tokenizer.convert_ids_to_tokens(sorted(others))
    is_known = any(piece.strip(BLANKS) for piece in pieces)
    return Tokens(numbers if is_known else [], words)
