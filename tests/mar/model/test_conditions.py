"""Classes and texts are conditions of one interface: K tokens in front of an image's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_configs import sample_config
from torch import Tensor

from mar.files import weights
from mar.model.conditions import (
    ClassTokens,
    EmbeddingTokens,
    TextShape,
    WordTokens,
    condition_tokens,
)
from mar.model.mar import MAR, GeneratorConfig
from mar.model.saved import load_mar, save_mar
from mar.released.generator import fitted
from mar.sampling.generate import KnownTokens, generate
from mar.sampling.noise import draw_noise


WORDS, EMBEDDINGS = TextShape("words", 6), TextShape("embeddings", 5)
BOTH = pytest.mark.parametrize("text", [WORDS, EMBEDDINGS], ids=["words", "embeddings"])
NEVER = torch.zeros(3, dtype=torch.bool)
# Three texts, of two words, of three (as many as there are slots) and of none.
TEXTS = torch.tensor([[2, 6, 0], [6, 2, 1], [0, 0, 0]])


def given(text: TextShape, rng: torch.Generator) -> Tensor:
    """Return the three texts as a generator takes them."""
    if text.kind == "words":
        return TEXTS
    table = torch.randn(6, 5, generator=rng)
    return table[(TEXTS - 1).clamp(min=0)] * (TEXTS > 0)[..., None]


@pytest.fixture
def make(tiny_model: MAR) -> Callable[..., MAR]:
    """Return a maker of generators with texts, of the same sizes as the tiny one."""

    def make(text: TextShape, **changes: Any) -> MAR:
        fields = {**tiny_model.config.model_dump(), **changes}
        model = MAR(GeneratorConfig.model_validate(fields), tiny_model.latent, 5, text=text)
        rng = torch.Generator().manual_seed(1)
        model.initialize(rng)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.1)
        return model.eval()

    return make


CAUSAL = {"attention": "causal", "mask_ratio": None, "size": {
    "encoder_width": 16, "encoder_blocks": 1, "encoder_heads": 2,
    "decoder_width": 16, "decoder_blocks": 1, "decoder_heads": 2,
}}  # fmt: skip


def test_a_class_fills_all_slots(tiny_model: MAR) -> None:
    layers = tiny_model.transformer.condition
    assert isinstance(layers, ClassTokens)
    labels, dropped = torch.tensor([2, 2, 4]), torch.tensor([True, False, True])
    found = layers(labels, dropped)
    assert found.shape == (3, 3, 16)
    for slot in range(3):
        assert torch.equal(found[0, slot], layers.null_embedding[0])
        assert torch.equal(found[1, slot], layers.class_embedding.weight[2])
        assert torch.equal(found[2, slot], layers.null_embedding[0])


def test_a_word_is_added_to_the_vector_of_its_slot(make: Callable[..., MAR]) -> None:
    layers = make(WORDS).transformer.condition
    assert isinstance(layers, WordTokens)
    found = layers(TEXTS, NEVER)
    table = layers.word_embedding.weight
    assert torch.equal(found[0], layers.pads + torch.stack([table[1], table[5], 0 * table[0]]))
    assert torch.equal(found[1], layers.pads + torch.stack([table[5], table[1], table[0]]))


def test_an_embedding_is_normalised_and_projected(
    make: Callable[..., MAR], rng: torch.Generator
) -> None:
    layers = make(EMBEDDINGS).transformer.condition
    assert isinstance(layers, EmbeddingTokens)
    x = given(EMBEDDINGS, rng)
    found = layers(x.half(), NEVER)  # as a cache holds it
    token = x[1, 2].half().float()
    normal = (token - token.mean()) / (token.var(correction=0) + 1e-6).sqrt()
    assert torch.allclose(found[1, 2], layers.pads[2] + layers.text_proj.weight @ normal, atol=1e-5)
    assert torch.equal(found[0, 2], layers.pads[2])
    scaled = layers(100 * x, NEVER)
    assert torch.allclose(scaled, layers(x, NEVER), atol=1e-4)


@BOTH
def test_a_dropped_text_an_empty_one_and_nothing_are_the_same(
    make: Callable[..., MAR], rng: torch.Generator, text: TextShape
) -> None:
    layers = make(text).transformer.condition
    pads = layers.get_parameter("pads").expand(3, -1, -1)
    assert torch.equal(layers(given(text, rng), ~NEVER), pads)
    assert torch.equal(layers(layers.nothing(3), NEVER), pads)
    assert torch.equal(layers(given(text, rng), NEVER)[2], pads[2])


@BOTH
@pytest.mark.parametrize("attention", [{}, CAUSAL], ids=["bidirectional", "causal"])
def test_every_weight_is_trained(
    make: Callable[..., MAR], rng: torch.Generator, text: TextShape, attention: dict[str, Any]
) -> None:
    model = make(text, label_drop=0.0, **attention).train()
    draws = model.draw(3, rng)
    while not attention and draws.num_hidden == model.num_tokens:  # visible tokens teach too
        draws = model.draw(3, rng)
    model(torch.randn(3, 2, 8, 6, generator=rng), given(text, rng), draws).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().max()) > 0, name


@BOTH
@pytest.mark.parametrize("attention", [{}, CAUSAL], ids=["bidirectional", "causal"])
def test_texts_and_their_order_guide_a_generation(
    make: Callable[..., MAR], rng: torch.Generator, text: TextShape, attention: dict[str, Any]
) -> None:
    model = make(text, **attention)
    config = sample_config(num_steps=12, guidance_scale=2.0)
    noise = draw_noise(model, [7, 7, 7], config)  # the same for all
    texts = given(text, rng)[[0, 1, 2]]
    texts[1] = texts[0, [1, 0, 2]]
    images = generate(model, texts, noise, config)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert float((images[one] - images[other]).abs().mean()) > 0.01
    alone = generate(model, texts[:1], draw_noise(model, [7], config), config)
    assert torch.allclose(images[:1], alone, atol=1e-4)


@BOTH
def test_causal_generation_is_the_same_without_the_cache(
    make: Callable[..., MAR], rng: torch.Generator, text: TextShape
) -> None:
    model = make(text, **CAUSAL)
    config = sample_config(num_steps=12, guidance_scale=1.0)
    noise, texts = draw_noise(model, range(3), config), given(text, rng)
    cached = generate(model, texts, noise, config)
    again = generate(model, texts, noise, config, cached=False)
    assert float((again - cached).norm() / cached.norm()) < 1e-3


def test_known_tokens_stay_as_they_are(make: Callable[..., MAR], rng: torch.Generator) -> None:
    model, config = make(WORDS), sample_config(num_steps=4)
    tokens = torch.randn(3, 12, 8, generator=rng)
    known = KnownTokens(tokens, torch.arange(12) < 5)
    found = generate(model, TEXTS, draw_noise(model, range(3), config), config, known=known)
    assert torch.equal(model.patchify(found)[:, 5:], tokens[:, 5:])
    assert not torch.isclose(model.patchify(found)[:, :5], tokens[:, :5]).any()


@BOTH
def test_begun_from_a_model_of_classes_it_is_that_model_without_a_class(
    tiny_model: MAR, make: Callable[..., MAR], rng: torch.Generator, text: TextShape
) -> None:
    """Before its first step, whatever the text: how ImageNet's weights begin a model of texts."""
    model = make(text)
    model.load_state_dict(fitted(tiny_model.state_dict(), model))
    config = sample_config(guidance_scale=1.0)
    noise = draw_noise(model, range(3), config)
    x, visible = torch.randn(3, 12, 8, generator=rng), torch.tensor([[1, 4], [0, 2], [3, 11]])
    classes, texts = (
        each.transformer.condition(value, dropped)
        for each, value, dropped in (
            (tiny_model, torch.tensor([0, 1, 2]), ~NEVER),
            (model, given(text, rng), NEVER),
        )
    )
    assert torch.allclose(
        model.transformer(x, visible, texts), tiny_model.transformer(x, visible, classes), atol=1e-6
    )
    unconditional = generate(model, model.transformer.condition.nothing(3), noise, config)
    assert torch.equal(generate(model, given(text, rng), noise, config), unconditional)


@BOTH
def test_begun_from_a_model_of_classes_its_texts_are_trained(
    tiny_model: MAR, make: Callable[..., MAR], rng: torch.Generator, text: TextShape
) -> None:
    model = make(text, label_drop=0.0)
    model.load_state_dict(fitted(tiny_model.state_dict(), model))
    latents = torch.randn(3, 2, 8, 6, generator=rng)
    model.train()(latents, given(text, rng), model.draw(3, rng)).backward()
    for parameter in model.transformer.condition.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0


def test_a_model_of_classes_takes_released_weights_as_they_are(tiny_model: MAR) -> None:
    weights = tiny_model.state_dict()
    assert fitted(weights, tiny_model).keys() == weights.keys()


@BOTH
def test_a_file_says_what_texts_it_takes(
    make: Callable[..., MAR], tmp_path: Path, text: TextShape
) -> None:
    model = make(text)
    save_mar(tmp_path / "model.safetensors", model, "digest")
    loaded = load_mar(tmp_path / "model.safetensors", "digest")
    assert loaded.text == text
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_a_file_from_before_there_were_texts_is_read(tiny_model: MAR, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_mar(path, tiny_model, "digest")
    tensors, description = weights.load(path)
    del description["text"]
    before = {name.replace(".condition.", "."): value for name, value in tensors.items()}
    assert {"transformer.class_embedding.weight", "transformer.null_embedding"} <= before.keys()
    weights.write_tensors(path, before, description)
    loaded = load_mar(path, "digest")
    assert loaded.text is None
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_new_layers_of_texts_have_the_initial_weights_of_the_others(
    make: Callable[..., MAR],
) -> None:
    model = MAR(make(EMBEDDINGS).config, make(EMBEDDINGS).latent, 5, text=TextShape("words", 500))
    model.initialize(torch.Generator().manual_seed(0))
    layers = model.transformer.condition
    for name, tolerance in {"word_embedding.weight": 0.05, "pads": 0.4}.items():
        std = layers.get_parameter(name).detach().std()
        assert float(std) == pytest.approx(0.02, rel=tolerance)
    assert isinstance(condition_tokens(3, None, 4, 2), ClassTokens)
