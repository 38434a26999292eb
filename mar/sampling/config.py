"""Section `sample` of `params.yaml`: how images are generated, and which models it fits."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from mar.averaging.choice import WeightsChoice
from mar.config import Config, name_or_fields
from mar.heads.annealing import AnnealedSampler
from mar.heads.registry import HEADS, SamplerConfig
from mar.model.mar import GeneratorConfig
from mar.sampling.halves import check_halves


ClassChoice = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")] | Annotated[int, Field(ge=0), Tag("fields")],
    Discriminator(name_or_fields),
]
LabelChoice = Annotated[
    Annotated[Literal["as_data"], Tag("name")]
    | Annotated[list[ClassChoice], Field(min_length=1), Tag("fields")],
    Discriminator(name_or_fields),
]


class DrawnPrompts(Config):
    """Captions of held-out images, drawn at random as those of COCO-30k are."""

    held_out: int = Field(gt=0, description="images that are drawn, with one caption of each")
    seed: int = Field(ge=0, description="chooses images and captions")


def _form(value: object) -> str:
    """Return in which of three forms prompts are given."""
    return "drawn" if isinstance(value, Mapping | DrawnPrompts) else name_or_fields(value)


PromptsChoice = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")]
    | Annotated[list[str], Field(min_length=1), Tag("fields")]
    | Annotated[DrawnPrompts, Tag("drawn")],
    Discriminator(_form),
]


class SampleConfig(Config):
    """Section `sample` of `params.yaml`: how images are generated."""

    seed: int = Field(ge=0, description="seed of orders and noise")
    num_images: int = Field(gt=0, description="images to generate")
    weights: WeightsChoice = Field(
        description="of the generator: ema (that of training.ema_decay), raw (those trained last), "
        "or an average rebuilt after the training: {width: 0.15} or {decay: 0.999}"
    )
    labels: LabelChoice | None = Field(
        description="classes to cycle through, by number (counted from 0, in the order of "
        "classes.json) or by name (text, so in quotes where it is a number); null for all of them, "
        "equally often; as_data for all of them, as often as in the training images",
    )
    prompts: PromptsChoice | None = Field(
        description="prompts to cycle through where there is a section text: a list of them, a "
        "file with one on each line, or one of GenEval's (.jsonl), whose samples can be judged; "
        "null for the first caption of each image held out, or {held_out: 30000, seed: 0}, which "
        "draws images and captions among them"
    )
    num_steps: int = Field(
        gt=0, description="generation steps, each of which reveals a set of tokens"
    )
    order: Literal["random", "raster", "confidence"] = Field(
        description="order of the tokens; confidence keeps the most probable draws of each step "
        "(MaskGIT; cross-entropy only)"
    )
    guidance_scale: float = Field(ge=1, description="classifier-free guidance; 1 is none")
    guidance_schedule: Literal["linear", "constant"] = Field(
        description="guidance scale: rising with the share of known tokens, or constant"
    )
    reconstruction_steps: int | None = Field(
        gt=0,
        description="the last of num_steps, in which the second half of a checkerboard is drawn "
        "after the first (GtR, arXiv 2510.17171); null draws any token in any step",
    )
    head: SamplerConfig = Field(description="how a token is sampled; of the kind of generator.head")
    shard_images: int = Field(
        gt=0, description="images in a file of generated images, which one process makes"
    )

    @property
    def unset_bound(self) -> str | None:
        """The key that would bound what is drawn; None where it is set, or the head has none."""
        return "sample.head.x_0_bound" if getattr(self.head, "x_0_bound", 0) is None else None

    @field_validator("head")
    @classmethod
    def _lists_no_more_than_steps(cls, value: SamplerConfig, info: Any) -> SamplerConfig:
        num_steps = info.data.get("num_steps")  # absent where it is itself refused
        if not isinstance(value, AnnealedSampler) or isinstance(value.annealing, str):
            return value
        if num_steps is not None and len(value.annealing) > num_steps:
            raise ValueError(
                f"annealing lists {len(value.annealing)} generation steps, and sample.num_steps is "
                f"{num_steps}"
            )
        return value


def check_fit(config: SampleConfig, generator: GeneratorConfig, num_tokens: int) -> None:
    """Check that a model can be sampled as `config` says.

    Raises:
        ValueError: the message names the key, what was found and what was expected.
    """
    if config.head.kind != generator.head.kind:
        raise ValueError(
            f"sample.head.kind: must be generator.head.kind, {generator.head.kind!r}, "
            f"got {config.head.kind!r}"
        )
    if config.order == "confidence" and (
        not HEADS[generator.head.kind].head.has_probabilities or generator.attention == "causal"
    ):
        raise ValueError(
            "sample.order: 'confidence' needs probabilities of tokens in any order: "
            "generator.head.kind cross_entropy and generator.attention bidirectional"
        )
    if config.guidance_scale > 1 and generator.label_drop == 0:
        raise ValueError(
            "sample.guidance_scale: must be 1 where generator.label_drop is 0, as the prediction "
            f"without class or text is not trained; got {config.guidance_scale}"
        )
    # A bidirectional model trained with random orders can generate in any order.
    learnt_any = generator.order == "random" and generator.attention == "bidirectional"
    if config.order != generator.order and not learnt_any:
        raise ValueError(
            f"sample.order: must be generator.order, {generator.order!r}, got {config.order!r}"
        )
    check_halves(
        config.num_steps,
        config.reconstruction_steps,
        any_order=learnt_any and config.order != "confidence",
    )
    if not 1 <= config.num_steps <= num_tokens:
        raise ValueError(
            f"sample.num_steps: must be 1 to {num_tokens}, the tokens of an image, "
            f"got {config.num_steps}"
        )
    if generator.attention == "causal" and config.num_steps != num_tokens:
        raise ValueError(
            f"sample.num_steps: must be {num_tokens}, the tokens of an image, as causal attention "
            f"draws them one by one; got {config.num_steps}"
        )
