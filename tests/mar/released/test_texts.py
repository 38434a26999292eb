"""A generator with texts begins with the released weights of one with classes, from their file."""

from pathlib import Path

import pytest
import torch

from mar.model.conditions import TextShape
from mar.model.mar import MAR
from mar.released.generator import ReleasedGenerator, fitted
from mar.released.names import to_released
from mar.released.pickles import write_generator
from mar.released.reader import read_generator


GIVEN = {  # a text of two tokens, as a generator takes it
    TextShape("words", 4): torch.tensor([[3, 1, 0]]),
    TextShape("embeddings", 5): torch.tensor([[[1.0, 2, 0, -3, 9], [4, 0, 1, 1, 1], [0] * 5]]),
}


@pytest.mark.parametrize("text", GIVEN, ids=lambda text: text.kind)
def test_a_file_of_classes_begins_a_generator_with_texts(
    tiny_model: MAR, tmp_path: Path, text: TextShape
) -> None:
    path = tmp_path / "checkpoint-last.pth"
    tensors = to_released(tiny_model.state_dict())
    write_generator(path, tensors, tensors)
    own = {"source": "released", "path": str(path), "sha256": None, "weights": "model"}
    fields = {**tiny_model.config.model_dump(), **own, "classes": "new"}
    section = ReleasedGenerator.model_validate(fields)
    model = MAR(section, tiny_model.latent, 1, text=text)
    found = read_generator(section, model, base=tmp_path)
    model.load_state_dict(fitted(section.to_ours(found.chosen), model))
    never, always = torch.tensor([False]), torch.tensor([True])
    texts = model.transformer.condition(GIVEN[text], never)
    nothing = tiny_model.transformer.condition(torch.tensor([2]), always)
    assert torch.equal(texts, nothing)
    x, visible = torch.randn(1, 12, 8), torch.tensor([[1, 4]])
    predicted, expected = (
        each.eval().transformer(x, visible, condition)
        for each, condition in ((model, texts), (tiny_model, nothing))
    )
    assert torch.allclose(predicted, expected, atol=1e-6)
    others = {
        name: value for name, value in model.state_dict().items() if ".condition." not in name
    }
    assert len(others) > 50
    assert all(torch.equal(value, tiny_model.state_dict()[name]) for name, value in others.items())
