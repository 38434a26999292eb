"""Frozen language models give each token of a text its hidden state, whatever its batch."""

import ast
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny_encoders as tiny
import torch

from mar.text.frozen import FrozenConfig, FrozenEncoder
from mar.text.prompts import Prompt, check_prompts
from mar.text.registry import load_encoder, save_encoder


KINDS = ("t5", "clip", "siglip", "bert", "llama")
TEXTS = ["a red seven", "the two", "a blue square of red", "", "green"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {kind: tiny.write_encoder(root / kind, kind) for kind in KINDS}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a network connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def learn(folder: Path, **changes: Any) -> FrozenEncoder:
    section = FrozenConfig.model_validate(tiny.section(folder, **changes))
    return section.learn([], base=Path())


def reference(kind: str, folder: Path, text: str, layer: int = -1) -> torch.Tensor:
    """Return the hidden states of one text by the library's own whole model, without padding."""
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    numbers = torch.tensor([tokenizer(text)["input_ids"]])
    length = numbers.shape[1]
    if kind == "siglip":
        numbers = torch.nn.functional.pad(numbers, (0, 7 - length))
    if kind == "t5":
        model = hf.T5Model.from_pretrained(folder).encoder
    else:
        names = {"clip": "CLIPTextModel", "siglip": "SiglipTextModel", "bert": "BertModel"}
        model = getattr(hf, names.get(kind, "LlamaModel")).from_pretrained(folder)
    with torch.no_grad():
        found = model.eval()(input_ids=numbers, output_hidden_states=True)
    hidden = found.last_hidden_state if layer == -1 else found.hidden_states[layer]
    return hidden[0, :length]


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_the_hidden_states_of_each_text_alone(
    folders: dict[str, Path], kind: str, layer: int
) -> None:
    encoder = learn(folders[kind], layer=layer)
    assert (encoder.token_kind, encoder.size) == ("embeddings", 12)
    found = encoder.encode(TEXTS, 9)
    assert found.shape == (5, 9, 12)
    for text, row in zip(TEXTS, found, strict=True):
        expected = reference(kind, folders[kind], text, layer) if text else torch.zeros(0, 12)
        assert torch.allclose(row[: len(expected)], expected, atol=1e-5)
        assert not row[len(expected) :].any()
    one_by_one = torch.cat([encoder.encode([text], 9) for text in TEXTS])
    assert torch.allclose(found, one_by_one, atol=1e-5)


def test_a_layer_is_another_encoder_and_there_are_only_so_many(folders: dict[str, Path]) -> None:
    last, before = learn(folders["clip"]), learn(folders["clip"], layer=-2)
    assert last.identity != before.identity
    assert not torch.allclose(last.encode(["a red two"], 4), before.encode(["a red two"], 4))
    with pytest.raises(ValueError, match=r"text\.layer: must be -2 to -1 for the 2 layers .* -3"):
        learn(folders["clip"], layer=-3)


@pytest.mark.parametrize(("kind", "most"), [("t5", 9), ("clip", 7), ("bert", 7)])
def test_a_long_text_is_cut_at_the_slots_or_at_what_the_model_reads(
    folders: dict[str, Path], kind: str, most: int
) -> None:
    encoder = learn(folders[kind])
    text = "a red seven of the blue square two two two"
    assert encoder.limit(9) == most
    assert encoder.limit(3) == 3
    present = encoder.encode([text], 9).any(dim=2)[0]
    assert present.tolist() == [True] * most + [False] * (9 - most)
    # The last token is the one that ends a text.
    words = text.split()[: most - (1 if kind == "t5" else 2)]
    assert torch.allclose(
        encoder.encode([text], 9), encoder.encode([" ".join(words)], 9), atol=1e-6
    )
    name = {
        "t5": "generator.condition_tokens",
        "clip": "the most that clip_text_model reads",
        "bert": "the most that bert reads",
    }[kind]
    assert check_prompts([Prompt(text)], encoder, 9) == [
        f"1 of 1 prompts have more than {most} tokens ({name}) and are cut, as {text!r}"
    ]


def test_words_that_are_not_known_are_said_and_a_text_of_them_is_empty(
    folders: dict[str, Path],
) -> None:
    encoder = learn(folders["t5"])
    (some, none), texts = encoder.tokenise(["a purple two", "purple"]), ["a purple two", "purple"]
    assert (some.numbers, some.unknown) == ([4, 2, 12, 1], ["purple"])
    assert (none.numbers, none.unknown) == ([], ["purple"])
    assert encoder.encode(texts, 5).any(dim=2).sum(dim=1).tolist() == [4, 0]
    assert check_prompts([Prompt("a purple two")], encoder, 5) == [
        "1 words of the prompts are not known and read as an unknown token: purple"
    ]
    for prompt in ("\u7d2b", " "):
        with pytest.raises(ValueError, match="nothing is left of the prompt"):
            check_prompts([Prompt(prompt)], encoder, 5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_that_of_weights_and_embeddings(
    folders: dict[str, Path], precision: str
) -> None:
    exact = learn(folders["llama"]).encode(TEXTS, 5)
    found = learn(folders["llama"], precision=precision).encode(TEXTS, 5)
    assert found.dtype == getattr(torch, precision)
    error = float((found.float() - exact).norm() / exact.norm())
    assert 0 < error < (0.03 if precision == "bfloat16" else 0.005)


def test_t5_is_never_float16(folders: dict[str, Path]) -> None:
    with pytest.raises(
        ValueError, match=r"text\.precision: must be 'bfloat16' or 'float32' for t5"
    ):
        learn(folders["t5"], precision="float16")


def test_an_encoder_is_kept_by_its_digest_and_opened_when_it_is_needed(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    for file in folders["t5"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    section = FrozenConfig.model_validate(tiny.section(Path("t5")))
    made = section.learn([], base=tmp_path)
    save_encoder(tmp_path / "encoder.json", section, made)
    loaded = load_encoder(tmp_path / "encoder.json", base=tmp_path)
    assert isinstance(loaded, FrozenEncoder)
    assert (loaded.identity, loaded.size, loaded.limit(5)) == (made.identity, 12, 5)
    assert torch.equal(loaded.encode(TEXTS, 5), made.encode(TEXTS, 5))

    tiny.write_encoder(folder, "t5", seed=1)
    other = load_encoder(tmp_path / "encoder.json", base=tmp_path)
    assert other is not None
    with pytest.raises(ValueError, match=r"text\.path: .* encode_text has to run again"):
        other.encode(TEXTS, 5)
    again = section.learn([], base=tmp_path)
    assert again.identity != made.identity
    digest = again.describe()["digest"]
    assert digest in again.summary
    assert learn(folder, sha256=digest.upper()).identity == again.identity
    with pytest.raises(ValueError, match=rf"text\.sha256: .* has the SHA-256 {digest}, expected 0"):
        learn(folder, sha256="0" * 64)


def test_a_tokenizer_may_lie_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("encoder", "tokenizer"):
        (tmp_path / name).mkdir()
    for file in folders["t5"].iterdir():
        place = "tokenizer" if "token" in file.name else "encoder"
        (tmp_path / place / file.name).write_bytes(file.read_bytes())
    found = learn(tmp_path / "encoder", tokenizer=str(tmp_path / "tokenizer"))
    whole = learn(folders["t5"])
    assert found.identity == whole.identity
    assert torch.equal(found.encode(TEXTS, 5), whole.encode(TEXTS, 5))


def test_the_tokenizer_of_siglip_is_read_without_sentencepiece(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tiny.write_encoder(tmp_path, "siglip")
    config = folder / "tokenizer_config.json"
    named = json.loads(config.read_text()) | {"tokenizer_class": "SiglipTokenizer"}
    config.write_text(json.dumps(named | {"pad_token": "</s>"}))
    (folder / "spiece.model").touch()
    found = learn(folder).encode(TEXTS, 5)
    assert found.shape == (5, 5, 12)
    assert not torch.allclose(found[0], learn(folders["siglip"]).encode(TEXTS, 5)[0])  # the filling
    (folder / "tokenizer.json").rename(folder / "vocab.txt")
    with pytest.raises(ValueError, match=r"text\.tokenizer: .* cannot be read"):
        learn(folder)


def spoil(folder: Path, change: str) -> None:
    """Make a folder one that is refused."""
    weights, config = folder / "model.safetensors", folder / "config.json"
    content = json.loads(config.read_text())
    match change:
        case "gone":
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
        case "no config":
            config.unlink()
        case "vit":
            config.write_text(json.dumps(content | {"model_type": "vit"}))
        case "no weights":
            weights.unlink()
        case "pickled":
            weights.rename(folder / "pytorch_model.bin")
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "more layers":
            config.write_text(json.dumps(content | {"num_layers": 3}))
        case "no tokenizer":
            (folder / "tokenizer.json").rename(folder / "spiece.model")
        case "lacks a part":
            weights.unlink()
            index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "broken tokenizer":
            (folder / "tokenizer.json").write_text("{")
        case _:  # a tokenizer of another model
            config.write_text(json.dumps(content | {"vocab_size": 12}))
            from safetensors.torch import load_file, save_file

            tensors = load_file(weights)
            save_file({"shared.weight": tensors.pop("shared.weight")[:12].clone(), **tensors},
                      weights, {"format": "pt"})  # fmt: skip


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("gone", r"text\.path: there is no folder .*t5"),
        ("no config", r"text\.path: .* has no config\.json, so it is not an encoder's folder"),
        ("vit", r"model of type 'vit', expected a text encoder: t5, "),
        ("no weights", r"text\.path: .* has no weights, expected model\.safetensors or .*json$"),
        ("pickled", r"has no weights, .*; pytorch_model\.bin is pickled and could run code"),
        ("truncated", r"text\.path: .* cannot be read as t5: "),
        ("more layers", r"text\.path: .* lacks \d+ of the weights of t5, encoder\.block\.2"),
        ("lacks a part", r"lacks weights that its index names: model-00001-of-00002"),
        ("no tokenizer", r"has no tokenizer\.json .*of other tokenizers it has: spiece\.model"),
        ("broken tokenizer", r"text\.tokenizer: .* cannot be read as a tokenizer: "),
        ("other tokenizer", r"has 13 tokens, and .* embeddings for 12; it is the tokenizer of an"),
    ],
)
def test_a_folder_that_cannot_serve_is_refused(
    folders: dict[str, Path], tmp_path: Path, change: str, complaint: str
) -> None:
    folder = tmp_path / "t5"
    folder.mkdir()
    for file in folders["t5"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    spoil(folder, change)
    with pytest.raises(ValueError, match=complaint):
        learn(folder)


def test_tokens_added_to_a_tokenizer_are_refused_in_a_text_only(tmp_path: Path) -> None:
    """Gemma 3's text models have a token for images without an embedding."""
    import transformers as hf

    folder = tiny.write_encoder(tmp_path, "llama")
    expected = learn(folder).encode(TEXTS, 5)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>", "<pad2>", "<more>", "<most>"])
    tokenizer.pad_token = "<most>"
    tokenizer.save_pretrained(folder)
    encoder = learn(folder)
    assert torch.equal(encoder.encode(TEXTS, 5), expected)
    complaint = r"'a <most>' has the token <most> with the number 16, expected less than 16"
    with pytest.raises(ValueError, match=complaint):
        encoder.tokenise(["a <image>", "a <most>"])


@pytest.mark.parametrize(("kind", "added"), [("t5", 1), ("bert", 2)])
def test_the_generator_takes_more_tokens_than_a_tokenizer_adds(
    folders: dict[str, Path], kind: str, added: int
) -> None:
    encoder = learn(folders[kind])
    encoder.check_count(added + 1)
    complaint = rf"generator\.condition_tokens: must be at least {added + 1}, .* got {added}$"
    with pytest.raises(ValueError, match=complaint):
        encoder.check_count(added)


def test_slow_libraries_are_imported_when_they_are_used() -> None:
    """Their import takes seconds; torchmetrics imports transformers where it is installed."""
    root = Path(__file__).parents[3]
    for path in sorted([*root.glob("mar/**/*.py"), *root.glob("stages/*.py")]):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            first = {name.partition(".")[0] for name in names}
            assert not first & {"transformers", "tokenizers", "torchmetrics"}, path
