"""Every mistake in `params.yaml` is refused, with its key, what was found and what was expected."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from mar.model.mar import GeneratorConfig
from mar.training.generator import TrainingConfig
from stages import check, params, presets


ROOT = Path(__file__).parents[2]


@pytest.fixture
def content() -> dict[str, Any]:
    return YAML(typ="safe").load((ROOT / "params.yaml").read_text())


def write(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML().dump(content, file)
    return path


def refuse(folder: Path, content: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r"params\.yaml") as caught:
        check.check_all(write(folder, content))
    return str(caught.value).replace(f"{folder}/", "")


def test_the_default_is_fine(content: dict[str, Any], tmp_path: Path) -> None:
    assert set(check.check_all(write(tmp_path, content))) == set(content)


def test_a_typo_is_named_once_with_a_suggestion(content: dict[str, Any], tmp_path: Path) -> None:
    content["training"]["step"] = content["training"].pop("steps")
    message = refuse(tmp_path, content)
    assert message == "params.yaml: training.step is not a known key; did you mean 'steps'?"


def test_a_missing_key_with_the_name_of_another_that_is_misspelt_is_named(
    content: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"width": 16, "blocks": 1, "heads": 2}
    content["tokenizer"] = {
        "kind": "detok", "latent_channels": 8, "patch_size": 4, "grid": 4, "noise_std": 3.0,
        "drop_ratio_max": 0.7, "kl_weight": 0.001, "decoder_from_step": None,
        "encoder": {"widht": 16, "blocks": 1, "heads": 2},
        "decoder": {"blocks": 1, "heads": 2},
    }  # fmt: skip
    assert refuse(tmp_path, content).splitlines() == [
        "params.yaml: tokenizer.encoder.widht is not a known key; did you mean 'width'?",
        "params.yaml: tokenizer.decoder.width is missing",
    ]
    content["tokenizer"]["decoder"] = sizes
    assert refuse(tmp_path, content).splitlines() == [
        "params.yaml: tokenizer.encoder.widht is not a known key; did you mean 'width'?",
    ]
    content["tokenizer"]["encoder"] = {"width": 16, "widht": 16, "blocks": 1, "heads": 2}
    content["tokenizer"]["decoder"] = {"blocks": 1, "heads": 2}  # what is missing here is not meant
    assert refuse(tmp_path, content).splitlines() == [
        "params.yaml: tokenizer.encoder.widht is not a known key; did you mean 'width'?",
        "params.yaml: tokenizer.decoder.width is missing",
    ]


def test_a_missing_key_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    del content["sample"]["head"]["temperature"]
    assert refuse(tmp_path, content) == "params.yaml: sample.head.temperature is missing"


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("training", "lr", "1e-4", "training.lr: input should be a valid number, got '1e-4'"),
        ("training", "steps", 2.5, "training.steps: input should be a valid integer, got 2.5"),
        ("training", "steps", True, "training.steps: input should be a valid integer, got True"),
        (
            "training",
            "steps",
            -1,
            "training.steps: input should be greater than or equal to 0, got -1",
        ),
        ("latents", "flips", 1, "latents.flips: input should be a valid boolean, got 1"),
        (
            "sample",
            "guidance_schedule",
            "linaer",
            "sample.guidance_schedule: input should be 'linear' or 'constant', got 'linaer'; "
            "did you mean 'linear'?",
        ),
        (
            "generator",
            "size",
            "gigantic",
            "generator.size: input should be 'base', 'large' or 'huge', got 'gigantic'",
        ),
        ("generator", "size", 3, "generator.size must hold keys of its own, got 3"),
        (
            "sample",
            "labels",
            [0, -1],
            "sample.labels[1]: input should be greater than or equal to 0, got -1",
        ),
    ],
)
def test_a_wrong_value_is_named(
    content: dict[str, Any], tmp_path: Path, section: str, key: str, value: object, message: str
) -> None:
    content[section][key] = value
    assert refuse(tmp_path, content) == f"params.yaml: {message}"


def test_keys_inside_a_choice_have_their_plain_name(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["generator"]["size"]["encoder_width"] = "wide"
    content["data"]["image_sise"] = content["data"].pop("image_size")
    assert refuse(tmp_path, content).splitlines() == [
        "params.yaml: data.image_sise is not a known key; did you mean 'image_size'?",
        "params.yaml: generator.size.encoder_width: input should be a valid integer, got 'wide'",
    ]


def test_a_choice_may_have_the_name_of_a_key(content: dict[str, Any], tmp_path: Path) -> None:
    assert content["reference"]["extractor"] == "classifier"
    content["reference"]["num_featurs"] = content["reference"].pop("num_features")
    content["reference"]["classifier"]["width"] = "wide"
    del content["reference"]["classifier"]["lr"]
    assert refuse(tmp_path, content).splitlines() == [
        "params.yaml: reference.classifier.width: input should be a valid integer, got 'wide'",
        "params.yaml: reference.classifier.lr is missing",
        "params.yaml: reference.num_featurs is not a known key; did you mean 'num_features'?",
    ]
    del content["reference"]["classifier"]
    assert "params.yaml: reference.classifier is missing" in refuse(tmp_path, content)


def test_an_unknown_choice_lists_the_known_ones(content: dict[str, Any], tmp_path: Path) -> None:
    content["data"]["source"] = "digit"
    message = refuse(tmp_path, content)
    assert message == (
        "params.yaml: data.source must be 'digits' or 'scenes' or 'folder' or 'captioned_folder' "
        "or 'parquet' or 'webdataset' or 'none', got 'digit'; did you mean 'digits'?"
    )


def test_a_choice_that_is_missing_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    del content["data"]["source"]
    assert refuse(tmp_path, content) == "params.yaml: data.source is missing"


def release(content: dict[str, Any]) -> None:
    """Change the default to released weights that are used as they are."""
    file = {"source": "released", "path": "a.pth", "sha256": None}
    content["tokenizer"] |= file
    content["generator"] |= {**file, "weights": "model_ema", "classes": "released"}
    content["latents"]["scale"] = 0.2325
    content["training"]["steps"] = content["tokenizer_training"]["steps"] = 0


@pytest.mark.parametrize("section", ["tokenizer", "generator"])
def test_mistakes_about_released_weights_are_named(
    content: dict[str, Any], tmp_path: Path, section: str
) -> None:
    release(content)
    assert check.check_all(write(tmp_path, content))[section].path == "a.pth"

    def refuse_one(changes: dict[str, object], *left: str) -> str:
        changed = {k: v for k, v in {**content[section], **changes}.items() if k not in left}
        return refuse(tmp_path, {**content, section: changed})

    prefix = f"params.yaml: {section}"
    assert refuse_one({}, "path") == f"{prefix}.path is missing"
    assert refuse_one({}, "sha256") == f"{prefix}.sha256 is missing"
    assert refuse_one({}, "source") == f"{prefix}.source is missing"
    assert refuse_one({"source": "relased"}) == (
        f"{prefix}.source must be 'trained' or 'released', got 'relased'; did you mean 'released'?"
    )
    assert refuse_one({"pth": "a.pth"}, "path") == (
        f"{prefix}.pth is not a known key; did you mean 'path'?"
    )
    assert refuse_one({"sha256": "12"}) == (
        f"{prefix}.sha256: string should match pattern '^[0-9a-fA-F]{{64}}$', got '12'"
    )
    assert refuse_one({"path": None}) == f"{prefix}.path: input should be a valid string, got None"
    assert refuse_one({"source": "trained"}).splitlines()[0] == (
        f"{prefix}.path is not a known key"
    )


def test_a_wrong_kind_of_tokenizer_is_named(content: dict[str, Any], tmp_path: Path) -> None:
    content["tokenizer"]["kind"] = "kk"
    message = refuse(tmp_path, content)
    assert message.startswith(
        "params.yaml: tokenizer.kind must be 'kl' or 'ldm' or 'diffusers' or 'vq' or "
    )
    del content["tokenizer"]["kind"]
    assert refuse(tmp_path, content) == "params.yaml: tokenizer.kind is missing"


@pytest.mark.parametrize("section", ["tokenizer", "generator"])
def test_weights_must_be_trained_or_given(
    content: dict[str, Any], tmp_path: Path, section: str
) -> None:
    training = {"tokenizer": "tokenizer_training", "generator": "training"}[section]
    content[training]["steps"] = 0
    assert refuse(tmp_path, content) == (
        f"params.yaml: {training}.steps: must be greater than 0, as this {section} begins with "
        "random weights, got 0"
    )
    content["tokenizer"] = {"kind": "pixels"}  # there are none to train
    content["generator"]["patch_size"] = 4
    content["tokenizer_training"]["steps"] = 0
    content["training"]["steps"] = 101
    check.check_all(write(tmp_path, content))


def test_new_classes_must_be_trained(content: dict[str, Any], tmp_path: Path) -> None:
    steps = content["training"]["steps"]
    release(content)
    content["generator"]["classes"] = "new"
    assert refuse(tmp_path, content) == (
        "params.yaml: training.steps: must be greater than 0, as generator.classes is 'new', whose "
        "embedding begins with random numbers, got 0"
    )
    content["training"]["steps"] = steps
    check.check_all(write(tmp_path, content))
    content["generator"]["classes"] = "nwe"
    assert refuse(tmp_path, content) == (
        "params.yaml: generator.classes: input should be 'released' or 'new', got 'nwe'; "
        "did you mean 'new'?"
    )


def test_a_released_generator_needs_its_scale(content: dict[str, Any], tmp_path: Path) -> None:
    release(content)
    content["latents"]["scale"] = None
    assert refuse(tmp_path, content) == (
        "params.yaml: latents.scale: must be what the released generator was trained with "
        "(released ones: 0.2325), got None"
    )


def test_without_images_nothing_may_need_them(content: dict[str, Any], tmp_path: Path) -> None:
    release(content)
    content["data"] = {"source": "none", "image_size": 16, "classes": ["a", "b"]}
    assert "reference.statistics: must be a file" in refuse(tmp_path, content)
    content["reference"] = {
        "extractor": "inception",
        "split": None,
        "num_features": 1000,
        "weights": None,
        "weights_sha256": None,
        "statistics": "a.npz",
        "statistics_sha256": None,
    }
    check.check_all(write(tmp_path, content))
    content["sample"]["labels"] = "as_data"
    assert "sample.labels: must be null or classes, as data.source" in refuse(tmp_path, content)
    content["sample"]["labels"] = None
    content["reference"] |= {"statistics": "", "statistics_sha256": "12"}
    assert refuse(tmp_path, content).splitlines() == [
        "params.yaml: reference.statistics: string should have at least 1 character, got ''",
        "params.yaml: reference.statistics_sha256: string should match pattern "
        "'^[0-9a-fA-F]{64}$', got '12'",
    ]
    content["reference"] |= {"statistics": "a.npz", "statistics_sha256": None}
    content["training"]["steps"] = 101
    assert refuse(tmp_path, content) == (
        "params.yaml: training.steps: must be 0, as data.source is 'none', got 101"
    )
    content["training"]["steps"] = 0
    content["data"]["classes"] = "imagnet"
    assert refuse(tmp_path, content) == (
        "params.yaml: data.classes: input should be 'imagenet', got 'imagnet'; "
        "did you mean 'imagenet'?"
    )
    content["data"]["classes"] = []
    assert refuse(tmp_path, content).startswith("params.yaml: data.classes: list should have at")


def test_keys_of_another_choice_get_no_foolish_hint(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["data"]["path"] = "photographs"
    assert refuse(tmp_path, content) == "params.yaml: data.path is not a known key"


PERCEPTUAL = {
    "kind": "classifier",
    "weight": 1.0,
    "classifier": {
        "seed": 1, "width": 4, "feature_width": 8, "steps": 20, "batch_size": 32, "lr": 0.002,
        "weight_decay": 0.05, "shift": 1, "flip": False, "noise": 64.0,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nnone", "kind must be 'none' or 'lpips' or 'classifier', got 'nnone'; did you mean "),
        (None, "kind must be 'none' or 'lpips' or 'classifier', got 'None'; did you mean 'none'?"),
        ({"kind": "vgg"}, "kind must be 'none' or 'lpips' or 'classifier', got 'vgg'"),
        ({"weight": 1.0}, "kind is missing"),
        ({**PERCEPTUAL, "weight": 0}, "weight: input should be greater than 0, got 0"),
        ({**PERCEPTUAL, "weights": None}, "weights is not a known key"),
        ({**PERCEPTUAL, "classifier": {}}, "classifier.seed is missing"),
    ],
)
def test_a_wrong_perceptual_loss_is_named(
    content: dict[str, Any], tmp_path: Path, value: object, message: str
) -> None:
    content["tokenizer_training"]["perceptual"] = value
    line = refuse(tmp_path, content).splitlines()[0]
    assert line.startswith(f"params.yaml: tokenizer_training.perceptual.{message}")


def test_a_tokenizer_is_not_trained_on_the_network_that_scores_it(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["tokenizer_training"]["perceptual"] = PERCEPTUAL
    check.check_all(write(tmp_path, content))
    content["reference"]["classifier"]["seed"] = 1
    assert refuse(tmp_path, content) == (
        "params.yaml: tokenizer_training.perceptual.classifier.seed: must differ from "
        "reference.classifier.seed, whose network scores the result, got 1"
    )


def test_a_classifier_with_nothing_to_learn_is_warned_of(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["tokenizer_training"]["perceptual"] = PERCEPTUAL
    configs = check.check_all(write(tmp_path, content))
    classes = tmp_path / "classes.json"
    classes.write_text('["cat", "dog"]')
    assert check.check_classes(configs, classes) == []
    classes.write_text('["cat"]')
    extractor, distance = check.check_classes(configs, classes)
    assert extractor.startswith("reference.extractor: 'classifier' cannot be trained")
    assert distance.startswith("tokenizer_training.perceptual.kind: 'classifier' cannot be")


def test_losses_for_larger_images_are_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["tokenizer_training"]["adversarial"] = {
        "start_step": 1, "warmup_steps": 0, "weight": 0.5, "max_weight": 1e4, "lr": 0.001,
        "base_channels": 8, "num_layers": 3, "regulariser": "none",
    }  # fmt: skip
    assert refuse(tmp_path, content) == (
        "params.yaml: tokenizer_training.adversarial.num_layers: a value of 3 needs images of at "
        "least 24 px, got 16"
    )


def test_sections_are_checked_too(content: dict[str, Any], tmp_path: Path) -> None:
    content["smaple"] = content.pop("sample")
    assert refuse(tmp_path, content).splitlines() == [
        "params.yaml: smaple is not a section; did you mean 'sample'?",
        "params.yaml: sample is missing",
    ]


def test_sections_that_do_not_fit_together_are_refused(
    content: dict[str, Any], tmp_path: Path
) -> None:
    content["sample"]["num_steps"] = 17
    message = refuse(tmp_path, content)
    assert message == (
        "params.yaml: sample.num_steps: must be 1 to 16, the tokens of an image, got 17"
    )
    content["sample"]["num_steps"] = 16
    content["data"]["image_size"] = 18
    assert "18 pixels do not divide into latents of 4 pixels" in refuse(tmp_path, content)


CAUSAL = {
    "generator.attention": "causal",
    "generator.mask_ratio": None,
    "generator.size.decoder_width": 48,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            CAUSAL,
            "generator.size.decoder_width: must equal encoder_width, 96, as causal attention makes "
            "encoder and decoder one stack; got 48",
        ),
        (
            {"generator.label_drop": 0.0},
            "sample.guidance_scale: must be 1 where generator.label_drop is 0, as the prediction "
            "without class or text is not trained; got 1.15",
        ),
        (
            {"training.steps": 100},
            "training.warmup_steps: must be less than training.steps, 100, got 100",
        ),
        (
            {"tokenizer_training.warmup_steps": 900},
            "tokenizer_training.warmup_steps: must be less than tokenizer_training.steps, 800, "
            "got 900",
        ),
        (
            {"sample.num_images": 1},
            "sample.num_images: must be 2 or more to be scored, got 1",
        ),
        (
            {"reference.split": None},
            "reference.split: must be train or held_out, got None",
        ),
        (
            {"evaluate.bootstrap": 1},
            "evaluate.bootstrap: must be 0, or 2 or more, got 1",
        ),
        (
            {"training.lr": float("inf")},
            "training.lr: input should be a finite number, got inf",
        ),
        (
            {"sample.head.temperature": float("nan")},
            "sample.head.temperature: input should be a finite number, got nan",
        ),
        (
            {"sample.head.solver": "ddim"},
            "sample.head.temperature: must be 1 where sample.head.solver is ddim, which adds no "
            "noise to scale, got 1.1",
        ),
        (
            {"sample.head.final_num_steps": 101},
            "sample.head.final_num_steps: must be at most sample.head.num_steps, 100, got 101",
        ),
        (
            {"tokenizer.channel_multipliers": [1, 0, 2]},
            "tokenizer.channel_multipliers[1]: input should be greater than 0, got 0",
        ),
    ],
)
def test_what_would_fail_late_or_spoil_results_is_refused_at_once(
    content: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for key, value in changes.items():
        *path, name = key.split(".")
        section = content
        for part in path:
            section = section[part]
        section[name] = value
    assert refuse(tmp_path, content) == f"params.yaml: {message}"


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    path.write_text(re.sub(r"(?m)^  lr: .*$", "  lr: 1e-4", text))
    assert params.load("training", TrainingConfig, path).lr == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "params.yaml must hold sections, got None"),
        ("a: [1", "params.yaml is not valid YAML: while parsing"),
        ("a: 1\na: 2\n", 'found duplicate key "a"'),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"params\.yaml") as caught:
        params.read(tmp_path / "params.yaml")
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing in"):
        params.load("generator", GeneratorConfig, tmp_path / "params.yaml")


def test_a_phase_that_would_never_begin_is_refused(tmp_path: Path) -> None:
    content = YAML(typ="safe").load(presets.resolve("imagenet256-mar-b", ROOT / "presets"))
    content["tokenizer_training"]["steps"] = 50_000
    assert refuse(tmp_path, content) == (
        "params.yaml: tokenizer_training.adversarial.start_step: must be less than "
        "tokenizer_training.steps, 50000, got 50001"
    )
    content = YAML(typ="safe").load(presets.resolve("digits-detok", ROOT / "presets"))
    content["tokenizer_training"]["steps"] = 600
    assert refuse(tmp_path, content) == (
        "params.yaml: tokenizer.decoder_from_step: must be less than "
        "tokenizer_training.steps, 600, got 600"
    )


def test_settings_for_more_images_are_warned_of(content: dict[str, Any], tmp_path: Path) -> None:
    """Published statistics without images give no KID, precision and recall."""
    statistics = tmp_path / "statistics.npz"
    content["reference"] = {
        "extractor": "inception", "split": None, "num_features": 1000, "weights": None,
        "weights_sha256": None, "statistics": str(statistics), "statistics_sha256": None,
    }  # fmt: skip
    content["evaluate"]["kid_subset_size"] = 1500
    numbers = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    np.savez(statistics, **numbers)
    assert check.config_warnings(check.check_all(write(tmp_path, content))) == []
    np.savez(statistics, **numbers, arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    assert check.config_warnings(check.check_all(write(tmp_path, content))) == [
        "for want of images (sample.num_images, reference.num_features), evaluate has "
        "kid_subset_size 500 (not 1500)"
    ]


def test_a_reference_is_a_split_or_a_file(content: dict[str, Any], tmp_path: Path) -> None:
    content["reference"] = {
        "extractor": "inception", "split": "train", "num_features": 1000, "weights": None,
        "weights_sha256": None, "statistics": "adm.npz", "statistics_sha256": None,
    }  # fmt: skip
    assert refuse(tmp_path, content) == (
        "params.yaml: reference.statistics: must be null, as reference.split says which images "
        "are compared with, got 'adm.npz'"
    )
    content["reference"] |= {"split": None, "statistics": None}
    assert refuse(tmp_path, content) == (
        "params.yaml: reference.statistics: must be a file, as reference.split is null, got None"
    )
