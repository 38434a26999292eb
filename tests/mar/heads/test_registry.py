"""A head is known by its line in the table alone."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from mar.config import Config, choice
from mar.heads.base import HeadSection, SamplerSection
from mar.heads.registry import HEADS, HeadConfig, SamplerConfig


class Toy(Config):
    """Section `generator.head` for a head that is not there."""

    kind: Literal["toy"]
    width: int = Field(description="some number")

    @property
    def denoiser_width(self) -> int:
        return self.width


def test_a_section_in_the_table_can_be_chosen() -> None:
    table: dict[str, type[Config]] = {"l2": HEADS["l2"].config, "toy": Toy}
    adapter = TypeAdapter[HeadSection](Annotated[HeadSection, choice(table)])
    toy = adapter.validate_python({"kind": "toy", "width": 3})
    assert toy == Toy(kind="toy", width=3)
    assert adapter.validate_python(toy) is toy
    assert adapter.dump_python(toy) == {"kind": "toy", "width": 3}
    with pytest.raises(ValidationError, match="'l2', 'toy'"):
        adapter.validate_python({"kind": "flow"})
    with pytest.raises(ValidationError, match="width"):
        adapter.validate_python({"kind": "toy"})


@pytest.mark.parametrize("sections", [HeadConfig, SamplerConfig])
def test_every_head_in_the_table_can_be_chosen_and_no_other(sections: type[object]) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(sections).validate_python({"kind": "unknown"})
    (problem,) = caught.value.errors()
    expected = ", ".join(f"'{name}'" for name in HEADS)
    assert problem["ctx"]["expected_tags"] == expected  # pyright: ignore[reportTypedDictNotRequiredAccess]


@pytest.mark.parametrize("name", HEADS)
def test_sections_and_heads_answer_what_is_asked_of_them(name: str) -> None:
    head, config, sampler = HEADS[name]
    for section, protocol in ((config, HeadSection), (sampler, SamplerSection)):
        asked = {key for key in vars(protocol) if isinstance(vars(protocol)[key], property)}
        assert asked <= {*section.model_fields, *dir(section)}
        assert section.model_fields["kind"].annotation == Literal[name]
    assert head.has_probabilities <= head.is_discrete  # numbers have densities
