"""Check the whole of `params.yaml`: every section, and how the sections fit together.

Run as a program it says whether the file is fine; every stage runs it before it begins.
"""

import sys
from pathlib import Path
from typing import Any

from mar import tokenizer
from mar.data_config import DataConfig
from mar.extractors import ClassifierReference, ReferenceConfig
from mar.fidelity import EvaluateConfig
from mar.generator import GeneratorConfig, check_size
from mar.latents import LatentsConfig
from mar.perceptual import ClassifierDistanceConfig
from mar.sampling import SampleConfig, check_fit
from mar.tokenizer import TokenizerConfig
from mar.tokenizer_training import TokenizerTrainingConfig
from mar.tokenizer_training import check_size as check_losses
from mar.training import TrainingConfig
from mar.vq import VQConfig
from stages import params


SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "tokenizer_training": TokenizerTrainingConfig,
    "latents": LatentsConfig,
    "generator": GeneratorConfig,
    "training": TrainingConfig,
    "sample": SampleConfig,
    "reference": ReferenceConfig,
    "evaluate": EvaluateConfig,
}


def check_all(path: Path = params.FILE) -> dict[str, Any]:
    """Return all sections as configs.

    Raises:
        ValueError: something is wrong; the message names every key that is, and what was expected.
    """
    content = params.read(path)
    params.check_names(content, SECTIONS, path)
    configs: dict[str, Any] = {}
    problems: list[str] = []
    for name, kind in SECTIONS.items():
        try:
            configs[name] = params.parse(name, content[name], kind, path)
        except ValueError as error:
            problems.append(str(error))
    if not problems:
        try:
            _check_fit(configs)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return configs


def _check_fit(configs: dict[str, Any]) -> None:
    """Refuse sections that are fine by themselves but do not fit together."""
    generator: GeneratorConfig = configs["generator"]
    sample: SampleConfig = configs["sample"]
    latent = tokenizer.latent_shape(configs["tokenizer"], configs["data"].image_size)
    codebook = (
        configs["tokenizer"].codebook_size if isinstance(configs["tokenizer"], VQConfig) else None
    )
    check_size(generator, latent, codebook)
    check_losses(configs["tokenizer_training"], configs["data"].image_size)
    _check_scores_are_of_another_network(configs)
    num_tokens = latent.height * latent.width // generator.patch_size**2
    check_fit(sample, generator, num_tokens)
    if configs["evaluate"].kid_subset_size > sample.num_images:
        raise ValueError(
            f"evaluate.kid_subset_size: must be at most sample.num_images, {sample.num_images}, "
            f"got {configs['evaluate'].kid_subset_size}"
        )


def _check_scores_are_of_another_network(configs: dict[str, Any]) -> None:
    """Refuse a tokenizer that is trained on the very network whose features score it."""
    distance = configs["tokenizer_training"].perceptual
    reference = configs["reference"]
    if not isinstance(distance, ClassifierDistanceConfig):
        return
    if isinstance(reference, ClassifierReference):
        seed = reference.classifier.seed
        if distance.classifier.seed == seed:
            raise ValueError(
                "tokenizer_training.perceptual.classifier.seed: must differ from "
                f"reference.classifier.seed, whose network scores the result, got {seed}"
            )


if __name__ == "__main__":
    try:
        check_all()
    except ValueError as problem:
        sys.stderr.write(f"{problem}\n")
        raise SystemExit(1) from None
    sys.stdout.write("params.yaml is fine\n")
