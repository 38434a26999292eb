"""A model file gives back the tensors and what they are, or says why it cannot."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mar.files import weights


DESCRIPTION = {"size": {"width": 3}, "name": "linear", "classes": [1, 2]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_tensors_and_description_come_back(path: Path) -> None:
    model = nn.Linear(3, 4)
    weights.save(path, model, DESCRIPTION)
    tensors, description = weights.load(path)
    assert description == DESCRIPTION
    assert tensors.keys() == {"weight", "bias"}
    assert torch.equal(tensors["weight"], model.weight)
    assert torch.equal(tensors["bias"], model.bias)


def test_the_same_model_makes_the_same_bytes(path: Path) -> None:
    model = nn.Linear(3, 4)
    weights.save(path, model, DESCRIPTION)
    first = path.read_bytes()
    weights.save(path, model, dict(reversed(DESCRIPTION.items())))
    assert path.read_bytes() == first


def test_views_of_tensors_are_written_as_they_look(path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4).requires_grad_()
    views = {"turned": whole.T, "part": whole[1:, ::2], "whole": whole}
    weights.write_tensors(path, views, {})
    read = load_file(path)
    assert read.keys() == views.keys()
    assert all(torch.equal(read[name], views[name]) for name in views)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
        weights.load(path)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_a_truncated_file_is_named(path: Path, share: float) -> None:
    weights.save(path, nn.Linear(30, 40), DESCRIPTION)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        weights.load(path)


def test_a_pickle_is_not_opened(path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), path)
    with pytest.raises(ValueError, match=r"model\.safetensors holds no digest"):
        weights.load(path)


def test_a_file_of_another_program_is_named(path: Path) -> None:
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"model\.safetensors holds no digest of its content .* program wrote it"
    ):
        weights.load(path)


def test_tensors_that_do_not_fit_a_model_are_named(path: Path) -> None:
    weights.save(path, nn.Linear(3, 4, bias=False), DESCRIPTION)
    tensors, _ = weights.load(path)
    expected = (
        r"model\.safetensors: tensors do not fit the 2 expected: 1 missing \(bias\), "
        r"1 of another shape \(weight: \[4, 3\], expected \[5, 3\]\)"
    )
    with pytest.raises(ValueError, match=expected):
        weights.load_into(nn.Linear(3, 5), tensors, path)
    with pytest.raises(ValueError, match=r"model\.safetensors: .* 1 unknown \(weight\)"):
        weights.load_into(nn.Identity(), tensors, path)
    model = nn.Linear(3, 4, bias=False)
    weights.load_into(model, tensors, path)
    assert torch.equal(model.weight, tensors["weight"])
