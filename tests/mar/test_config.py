"""A section of `params.yaml` is refused unless it is complete, exactly typed, and of known keys."""

import re
from importlib import import_module
from pkgutil import walk_packages

import pytest
from pydantic import Field, ValidationError

import mar
from mar.config import Config, cut_down
from mar.heads.denoiser import DenoiserSize
from mar.model.mar import GeneratorConfig
from mar.sampling.config import SampleConfig
from mar.tokenizer_training.adversary import LeCamConfig


def subclasses(config: type[Config]) -> list[type[Config]]:
    return [each for found in config.__subclasses__() for each in (found, *subclasses(found))]


for module in walk_packages(mar.__path__, "mar."):
    import_module(module.name)
CONFIGS = [config for config in subclasses(Config) if config.__module__.startswith("mar.")]


class Example(Config):
    """A section with a field of each of two types."""

    steps: int = Field(gt=0, description="optimiser steps")
    lr: float = Field(description="learning rate")


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"steps": 1}, "lr\n  Field required"),
        ({"steps": 1, "lr": 1.0, "step": 2}, "step\n  Extra inputs are not permitted"),
        ({"steps": 1.0, "lr": 1.0}, "steps\n  Input should be a valid integer"),
        ({"steps": True, "lr": 1.0}, "steps\n  Input should be a valid integer"),
        ({"steps": 1, "lr": "1e-4"}, "lr\n  Input should be a valid number"),
        ({"steps": 0, "lr": 1.0}, "steps\n  Input should be greater than 0"),
    ],
)
def test_a_wrong_section_is_refused(section: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(complaint)):
        Example.model_validate(section)


def test_whole_numbers_are_valid_where_a_fraction_may_be() -> None:
    assert Example.model_validate({"steps": 1, "lr": 1}).lr == 1


def test_a_config_cannot_be_changed() -> None:
    config = Example(steps=1, lr=1.0)
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 2  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__qualname__)
def test_no_field_has_a_default_and_each_is_described(config: type[Config]) -> None:
    for name, field in config.model_fields.items():
        assert field.is_required(), name
        assert field.description or name == "kind", name


def test_all_sections_are_found() -> None:
    """Those of `params.yaml`, and whatever they are made of."""
    assert {SampleConfig, GeneratorConfig, DenoiserSize, LeCamConfig} <= set(CONFIGS)


def test_a_config_is_cut_down_to_its_base() -> None:
    class Longer(Example):
        name: str = Field(description="more")

    cut = cut_down(Longer(steps=1, lr=0.5, name="x"), Example)
    assert type(cut) is Example
    assert cut == Example(steps=1, lr=0.5)
