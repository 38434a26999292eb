"""Check the whole of `params.yaml`: every section, and how the sections fit together.

Run as a program it says whether the file is fine; every stage runs it before it begins.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from mar.data.class_names import read_class_names
from mar.evaluation.classifier_extractor import ClassifierReference
from mar.evaluation.extractor_registry import ReferenceConfig
from mar.evaluation.photo_scores import check_classes as check_objects
from mar.evaluation.published import find_published, has_images
from mar.evaluation.score_config import EvaluateConfig, fit_sizes, fit_warnings
from mar.latents.info import LatentsConfig
from mar.model.mar import GeneratorConfig, check_size, narrow_denoiser_warning
from mar.released.generator import GeneratorSource
from mar.released.shapes import check_layout
from mar.released.tokenizer import TokenizerSource
from mar.sampling.config import SampleConfig, check_fit
from mar.sampling.labels import resolve_labels
from mar.scenes.wanted import Prompt
from mar.sources.registry import DataConfig
from mar.text.prompts import find_prompts, is_geneval_file
from mar.text.registry import TextConfig
from mar.tokenizer_training.perceptual import ClassifierDistanceConfig, one_class_warning
from mar.tokenizer_training.trainer import TokenizerTrainingConfig
from mar.tokenizer_training.trainer import check_size as check_losses
from mar.tokenizers.interface import TokenizerSection
from mar.tokenizers.registry import latent_shape
from mar.training.generator import TrainingConfig
from mar.training.optimisation import OptimisationConfig, long_average_warning
from stages import named_paths, params
from stages.stage import root


SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "tokenizer": TokenizerSource,
    "tokenizer_training": TokenizerTrainingConfig,
    "latents": LatentsConfig,
    "text": TextConfig | None,  # pyright: ignore[reportOperatorIssue]
    "generator": GeneratorSource,
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


def config_warnings(configs: dict[str, Any]) -> list[str]:
    """Return what is allowed but likely a mistake, one sentence each."""
    latent = latent_shape(configs["tokenizer"], configs["data"].image_size)
    doubts = [narrow_denoiser_warning(configs["generator"], latent)]
    for name in ("tokenizer_training", "training"):
        doubts.append(long_average_warning(f"{name}.ema_decay", configs[name]))
    known = [doubt for doubt in doubts if doubt is not None]
    return [*known, *_count_warnings(configs)]


def _count_warnings(configs: dict[str, Any]) -> list[str]:
    """Return what scores lack for want of images, as far as it is known before they are there."""
    sample, reference = configs["sample"], configs["reference"]
    published = find_published(reference, root())
    has_features = published is None or has_images(published)
    fitted = fit_sizes(
        configs["evaluate"], sample.num_images, reference.num_features if has_features else 0
    )
    name = "images (sample.num_images, reference.num_features)"
    return fit_warnings(name, configs["evaluate"], fitted)


def check_classes(configs: dict[str, Any], classes: Path) -> list[str]:
    """Compare the sections with the classes that `prepare` found; return warnings.

    Raises:
        ValueError: a class to generate does not exist; the message names it.
    """
    class_names = read_class_names(classes)
    resolve_labels(configs["sample"].labels, class_names)
    num_classes = len(class_names)
    warnings = [configs["reference"].one_class_warning(num_classes)]
    if configs["tokenizer_training"].steps:
        distance = configs["tokenizer_training"].perceptual
        warnings.append(one_class_warning(distance, num_classes))
    return [warning for warning in warnings if warning is not None]


def _check_fit(configs: dict[str, Any]) -> None:
    """Refuse sections that are fine by themselves but do not fit together."""
    generator: GeneratorConfig = configs["generator"]
    sample: SampleConfig = configs["sample"]
    latent = latent_shape(configs["tokenizer"], configs["data"].image_size)
    check_size(generator, latent, configs["tokenizer"].codebook_size)
    check_losses(configs["tokenizer_training"], configs["data"].image_size)
    _check_scores_are_of_another_network(configs)
    num_tokens = latent.height * latent.width // generator.patch_size**2
    check_fit(sample, generator, num_tokens)
    for name in ("tokenizer_training", "training"):
        _check_warmup(name, configs[name])
    _check_phases(configs["tokenizer"], configs["tokenizer_training"])
    _check_sources(configs)
    _check_texts(configs)
    _check_prompt_scores(configs)
    _check_weights(sample, configs["training"])
    if not configs["data"].has_images:
        _check_without_images(configs)
    if sample.num_images < 2:
        raise ValueError(
            f"sample.num_images: must be 2 or more to be scored, got {sample.num_images}"
        )


def _check_warmup(name: str, config: OptimisationConfig) -> None:
    """Refuse a training that ends before its learning rate is reached; one of no steps has none."""
    if 0 < config.steps <= config.warmup_steps:
        raise ValueError(
            f"{name}.warmup_steps: must be less than {name}.steps, {config.steps}, "
            f"got {config.warmup_steps}"
        )


def _check_weights(sample: SampleConfig, training: TrainingConfig) -> None:
    """Refuse an average to be rebuilt where the training keeps none."""
    if isinstance(sample.weights, str) or (training.averages and training.steps):
        return
    raise ValueError(
        "sample.weights: must be 'ema' or 'raw', as training.averages is null or training.steps 0, "
        f"got {sample.weights.model_dump()}"
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


def _check_phases(section: TokenizerSection, config: TokenizerTrainingConfig) -> None:
    """Refuse phases of a tokenizer's training that would never begin."""
    begins: dict[str, int | None] = {}
    if config.adversarial is not None:
        begins["tokenizer_training.adversarial.start_step"] = config.adversarial.start_step
    begins |= {f"tokenizer.{key}": step for key, step in section.phases.items()}
    for key, step in begins.items():
        if step is not None and 0 < config.steps <= step:
            raise ValueError(
                f"{key}: must be less than tokenizer_training.steps, {config.steps}, got {step}"
            )


def _check_sources(configs: dict[str, Any]) -> None:
    """Refuse weights that would be neither trained nor given, and a scale that is not theirs."""
    tokenizer, generator = configs["tokenizer"], configs["generator"]
    is_released = generator.source == "released"
    random = {
        "tokenizer_training": ("tokenizer", tokenizer.has_weights and not tokenizer.is_released),
        "training": ("generator", not is_released),
    }
    for training, (name, begins_random) in random.items():
        if begins_random and not configs[training].steps:
            raise ValueError(
                f"{training}.steps: must be greater than 0, as this {name} begins with random "
                "weights, got 0"
            )
    if is_released:
        check_layout(generator)
        if generator.classes == "new" and not configs["training"].steps:
            raise ValueError(
                "training.steps: must be greater than 0, as generator.classes is 'new', whose "
                "embedding begins with random numbers, got 0"
            )
        if configs["latents"].scale is None:
            raise ValueError(
                "latents.scale: must be what the released generator was trained with (released "
                "ones: 0.2325), got None"
            )


def _check_texts(configs: dict[str, Any]) -> None:
    """Refuse keys for texts without texts, for classes with them, and prompts that are none."""
    generator, sample = configs["generator"], configs["sample"]
    if configs["text"] is None:
        if sample.prompts is not None:
            raise ValueError("sample.prompts: must be null, as section text is null")
        return
    if not configs["data"].has_captions:
        raise ValueError(
            f"text: must be null, as images of data.source {configs['data'].source!r} have no "
            "captions"
        )
    if sample.labels is not None:
        raise ValueError("sample.labels: must be null where there is a section text: see prompts")
    if isinstance(sample.prompts, str | list):  # before a training, not after it
        for number, prompt in enumerate(find_prompts(sample.prompts, [], base=root())):
            if not prompt.text:
                where = prompt.place or f"entry {number}, counted from 0"
                raise ValueError(f"sample.prompts: {where}: the prompt is empty, expected text")
    if generator.source == "released" and generator.classes != "new":
        raise ValueError(
            "generator.classes: must be 'new' where there is a section text, as texts take the "
            f"place of the file's classes, got {generator.classes!r}"
        )


def _check_prompt_scores(configs: dict[str, Any]) -> None:
    """Refuse scores by prompts without such prompts."""
    evaluate: EvaluateConfig = configs["evaluate"]
    prompts = configs["sample"].prompts
    if evaluate.geneval is not None:
        if not isinstance(prompts, str) or not is_geneval_file(prompts):
            raise ValueError(
                "evaluate.geneval: must be null where sample.prompts is no file of GenEval "
                f"(NAME.jsonl), got prompts {prompts!r}"
            )
        for prompt in find_prompts(prompts, [], base=root()):
            try:
                check_objects([Prompt.read(prompt.geneval or "")])
            except ValueError as error:
                raise ValueError(f"evaluate.geneval: {prompt.named(str(error))}") from None
    if evaluate.clip_score is not None and configs["text"] is None:
        raise ValueError("evaluate.clip_score: must be null where section text is null")


def _check_without_images(configs: dict[str, Any]) -> None:
    """Refuse what needs images where data.source is none."""
    for training in ("tokenizer_training", "training"):
        if configs[training].steps:
            raise ValueError(
                f"{training}.steps: must be 0, as data.source is 'none', "
                f"got {configs[training].steps}"
            )
    if configs["sample"].labels == "as_data":
        raise ValueError("sample.labels: must be null or classes, as data.source is 'none'")
    if configs["latents"].scale is None:
        raise ValueError("latents.scale: must be a number, as data.source is 'none', got None")
    reference = configs["reference"]
    if reference.statistics_file is None:
        raise ValueError(
            "reference.statistics: must be a file, for the extractor inception, as data.source is "
            "'none'"
        )


def main() -> None:
    """Check `params.yaml` and say what was found."""
    argparse.ArgumentParser(
        prog="python -m stages.check", description="Check the whole of params.yaml."
    ).parse_args()
    try:
        configs = check_all()
        found = config_warnings(configs)
        named_paths.check_paths(configs)
    except ValueError as problem:
        sys.stderr.write(f"{problem}\n")
        raise SystemExit(1) from None
    sys.stderr.writelines(f"{params.FILE}: {warning}\n" for warning in found)
    sys.stdout.write("params.yaml is fine\n")


if __name__ == "__main__":
    main()
