"""Section `evaluate` of `params.yaml`: how features are compared, and what judges prompts."""

from pydantic import Field, field_validator

from mar.config import Config, PathText


class GenEvalConfig(Config):
    """What sees the objects in photographs."""

    detector: PathText = Field(
        description="folder of a Mask2Former for instances of COCO, as transformers saves it; the "
        "published scores have Swin-S"
    )
    clip: PathText = Field(
        description="folder of the CLIP that tells colours; the published scores have ViT-L/14"
    )


class ScoreConfig(Config):
    """How features are compared: of section `evaluate`, what scores of real images need too.

    `is_splits`, `kid_subset_size` and `neighbours` are lowered where there are fewer images, the
    second to half of them, so that its subsets differ.
    """

    is_splits: int = Field(
        ge=1, description="parts whose Inception scores are averaged; published ones use 10"
    )
    is_shuffle: bool = Field(
        description="whether the parts are random, as torch-fidelity's, or in the order of the "
        "images, as ADM's"
    )
    kid_subsets: int = Field(
        ge=1, le=100_000, description="random subsets whose kernel distances are averaged"
    )
    kid_subset_size: int = Field(ge=2, description="images in each subset")
    neighbours: int = Field(
        ge=1,
        description="k of precision and recall: the manifold around an image reaches to its k-th "
        "neighbour (usually 3)",
    )
    bootstrap: int = Field(
        ge=0,
        le=10_000,
        description="resamples that tell a distance's spread; 0 for none, nor one at infinity",
    )
    infinity_points: int = Field(
        ge=0,
        le=1000,
        description="subsets from which the Frechet distance is extrapolated to infinitely many "
        "images (15 in the paper); 0 leaves it out, as do less than ten images for each feature",
    )
    seed: int = Field(ge=0, lt=2**32, description="chooses the splits, subsets and resamples")

    @field_validator("bootstrap", "infinity_points")
    @classmethod
    def _refuse_one(cls, value: int) -> int:
        if value == 1:
            raise ValueError("must be 0, or 2 or more")
        return value


class EvaluateConfig(ScoreConfig):
    """Section `evaluate` of `params.yaml`: how features are compared, and prompts judged."""

    geneval: GenEvalConfig | None = Field(
        description="judge samples of GenEval's prompts (sample.prompts: NAME.jsonl); null does not"
    )
    clip_score: PathText | None = Field(
        description="folder of a CLIP that tells how near images are to their prompts, as "
        "transformers saves it; null leaves CLIPScore out"
    )


def fit_sizes(config: ScoreConfig, num_images: int, num_features: int) -> ScoreConfig:
    """Return the settings, those that are larger than the set of images lowered to its size.

    Args:
        config: The settings.
        num_images: How many images are to be scored; at least two.
        num_features: How many real images they are compared with in KID, precision and recall; 0
            where these are not computed.
    """
    fewest = min(num_images, num_features) if num_features else num_images
    fits = config.kid_subset_size <= fewest
    return config.model_copy(
        update={
            "is_splits": min(config.is_splits, num_images),
            "kid_subset_size": config.kid_subset_size if fits else max(fewest // 2, 2),
            "neighbours": min(config.neighbours, fewest - 1),
        }
    )


def fit_warnings(name: str, config: ScoreConfig, fitted: ScoreConfig) -> list[str]:
    """Return a warning if settings were lowered for want of images (what they are called)."""
    before, now = config.model_dump(), fitted.model_dump()
    changed = [f"{key} {now[key]} (not {before[key]})" for key in now if now[key] != before[key]]
    return [f"for want of {name}, evaluate has {', '.join(changed)}"] if changed else []
