"""The folder of a text encoder as Hugging Face lays it out: which model it is, whether it is whole.

    config.json                                   which model, and its sizes
    model.safetensors                             the weights, or model.safetensors.index.json with
                                                  several files
    tokenizer.json (or vocab.json and merges.txt, or vocab.txt), tokenizer_config.json

Nothing is downloaded, no code of a folder is run, and no pickle is opened.
"""

from pathlib import Path
from typing import Any, NamedTuple

from mar.files import atomic, pretrained


WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


class Family(NamedTuple):
    """Models that are used alike.

    Attributes:
        model: The class of `transformers` that is the text encoder alone.
        has_pooling: Whether it has layers for one vector of a whole text, which are left out.
        overflows: Whether its activations exceed the range of float16.
        fills_up: Whether it was trained on texts filled up to its length, without a mask.
        first_position: Of its positions, those before are not for tokens.
    """

    model: str
    has_pooling: bool = False
    overflows: bool = False
    fills_up: bool = False
    first_position: int = 0


CAUSAL = Family("AutoModel")  # its last hidden states, before the head for words

FAMILIES = {  # by `model_type` in config.json
    "t5": Family("T5EncoderModel", overflows=True),  # and T5 v1.1, Flan-T5
    "mt5": Family("MT5EncoderModel", overflows=True),
    "umt5": Family("UMT5EncoderModel", overflows=True),
    "clip": Family("CLIPTextModel"),
    "clip_text_model": Family("CLIPTextModel"),
    "siglip": Family("SiglipTextModel", fills_up=True),
    "siglip_text_model": Family("SiglipTextModel", fills_up=True),
    "siglip2": Family("Siglip2TextModel", fills_up=True),
    "siglip2_text_model": Family("Siglip2TextModel", fills_up=True),
    "bert": Family("BertModel", has_pooling=True),
    "roberta": Family("RobertaModel", has_pooling=True, first_position=2),
    "xlm-roberta": Family("XLMRobertaModel", has_pooling=True, first_position=2),
    "distilbert": Family("DistilBertModel"),
    "modernbert": Family("ModernBertModel"),
    **dict.fromkeys(
        (
            "gemma", "gemma2", "gemma3_text", "llama", "mistral", "phi", "phi3", "qwen2", "qwen3",
        ),
        CAUSAL,
    ),
}  # fmt: skip


class EncoderFolder(NamedTuple):
    """A folder of an encoder, and that of its tokenizer, which may be the same.

    Attributes:
        path: The encoder's.
        tokenizer: The tokenizer's.
        model_type: Which model it is.
    """

    path: Path
    tokenizer: Path
    model_type: str

    @property
    def family(self) -> Family:
        """How the model is used."""
        return FAMILIES[self.model_type]

    @property
    def tokenizer_class(self) -> object:
        """The class of `transformers` that the tokenizer's folder names; None if it names none."""
        path = self.tokenizer / "tokenizer_config.json"
        content: Any = atomic.read_json(path) if path.is_file() else {}
        return content.get("tokenizer_class")

    def digest(self) -> str:
        """Return the SHA-256 of all files that are used."""
        names = sorted(name for name in TOKENIZER_FILES if (self.tokenizer / name).is_file())
        files = [self.path / "config.json", *_weights(self.path)]
        return pretrained.digest([*files, *(self.tokenizer / name for name in names)])


def open_folder(path: Path, tokenizer: Path | None) -> EncoderFolder:
    """Look at a folder, whose weights are not read yet.

    Args:
        path: The encoder's folder.
        tokenizer: That of its tokenizer, if it is another one.

    Raises:
        ValueError: a folder or a file in it is missing, or it holds another kind of model.
    """
    for key, folder in (("path", path), ("tokenizer", tokenizer or path)):
        if not folder.is_dir():
            raise ValueError(f"text.{key}: there is no folder {folder}")
    model_type = _model_type(path)
    _weights(path)
    found = tokenizer or path
    if not any(all((found / name).is_file() for name in names) for names in TOKENIZERS):
        others = ", ".join(sorted(file.name for file in found.glob("*.model"))) or "none"
        raise ValueError(
            f"text.{'path' if tokenizer is None else 'tokenizer'}: {found} has no tokenizer.json "
            f"(or vocab.json and merges.txt, or vocab.txt); of other tokenizers it has: {others}. "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes one"
        )
    return EncoderFolder(path, found, model_type)


def _model_type(path: Path) -> str:
    """Return which model a folder holds.

    Raises:
        ValueError: it holds none, or none that is known.
    """
    config = path / "config.json"
    if not config.is_file():
        raise ValueError(f"text.path: {path} has no config.json, so it is not an encoder's folder")
    content: Any = atomic.read_json(config)
    found: object = content.get("model_type") if isinstance(content, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if not isinstance(found, str) or found not in FAMILIES:
        raise ValueError(
            f"text.path: {config} is that of a model of type {found!r}, expected a text encoder: "
            f"{', '.join(FAMILIES)}"
        )
    return found


def _weights(path: Path) -> list[Path]:
    """Return the files of weights.

    Raises:
        ValueError: there are none, or only pickled ones.
    """
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        pickled = sorted(file.name for pattern in PICKLES for file in path.glob(pattern))
        why = ""
        if pickled:
            why = (
                f"; {', '.join(pickled)} is pickled and could run code, so it is not opened "
                "(save_pretrained of transformers writes safetensors)"
            )
        raise ValueError(f"text.path: {path} has no weights, expected {WEIGHTS} or {INDEX}{why}")
    index: Any = atomic.read_json(path / INDEX)
    names: list[str] = sorted(set(index["weight_map"].values()))
    if missing := [name for name in names if not (path / name).is_file()]:
        raise ValueError(f"text.path: {path} lacks weights that its index names: {missing[0]}")
    return [path / INDEX, *(path / name for name in names)]
