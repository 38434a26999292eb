"""Every preset is a complete, valid `params.yaml`, and writing one never loses edits."""

import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from mar.latents.posterior import LatentShape
from mar.model.mar import MAR, narrow_denoiser_warning
from mar.sampling.labels import balanced_labels
from mar.scenes.grammar import draw_scene
from mar.seeds import make_rng
from mar.tokenizers.registry import build_tokenizer, latent_shape
from stages import check, presets


ROOT = Path(__file__).parents[2]
NAMES = presets.names(ROOT / "presets")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_valid_and_its_models_can_be_built(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(presets.resolve(name, ROOT / "presets"))
    configs = check.check_all(path)
    latent = latent_shape(configs["tokenizer"], configs["data"].image_size)
    with torch.device("meta"):
        codebook_size = build_tokenizer(configs["tokenizer"]).codebook_size
        MAR(configs["generator"], latent, 1000, codebook_size)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_line_stands_before_each_section_alone(name: str) -> None:
    text = presets.resolve(name, ROOT / "presets")
    _, _, body = text.partition("\n\n")  # behind the head
    sections = [part.splitlines() for part in body.split("\n\n")]
    assert [lines[0].partition(":")[0] for lines in sections] == list(check.SECTIONS)
    assert all(line.startswith(" ") for lines in sections for line in lines[1:])


@pytest.mark.parametrize(
    ("width", "parameters"),
    [(256, 1_526_560), (512, 5_412_384), (1024, 20_261_920), (1536, 44_548_640)],
)
def test_denoisers_are_table_3(width: int, parameters: int, tmp_path: Path) -> None:
    """The paper says 21 M for a width of 1024: the denoiser alone has 20.3 M, and 20.5 M with the
    positions that are added to its input z, which only the Diffusion Loss is there for.
    """
    path = tmp_path / "params.yaml"
    path.write_text(presets.resolve(f"paper/table3-denoiser{width}", ROOT / "presets"))
    configs = check.check_all(path)
    latent = latent_shape(configs["tokenizer"], configs["data"].image_size)
    with torch.device("meta"):
        model = MAR(configs["generator"], latent, num_classes=1000)
    assert sum(parameter.numel() for parameter in model.head.parameters()) == parameters
    positions = model.transformer.head_position.numel()
    assert width != 1024 or round((parameters + positions) / 1e6) == 21


def test_the_two_kl16_of_table_2_differ_in_their_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    found: list[dict[str, object]] = []
    for name in ("paper/table2-kl16", "paper/table2-kl16-openimages"):
        path.write_text(presets.resolve(name, ROOT / "presets"))
        configs = check.check_all(path)
        assert latent_shape(configs["tokenizer"], 256) == LatentShape(16, 16, 16)
        found.append(dict(configs))
    differing = [section for section in found[0] if found[0][section] != found[1][section]]
    assert differing == ["tokenizer", "tokenizer_training"]


def test_there_is_one_vq16(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    rows = [name for name in NAMES if "vq16" in name and "toy" not in name]
    rows += [name for name in NAMES if name.startswith("paper/") and "cross-entropy" in name]
    assert len(rows) == 6
    found: list[object] = []
    for name in rows:
        path.write_text(presets.resolve(name, ROOT / "presets"))
        configs = check.check_all(path)
        found.append((configs["tokenizer"], configs["tokenizer_training"]))
    assert all(sections == found[0] for sections in found)


@pytest.mark.parametrize(
    ("name", "size", "guidance_scale"),
    [
        ("imagenet256-mar-b", "base", 2.9),
        ("imagenet256-mar-l", "large", 3.0),
        ("imagenet256-mar-h", "huge", 3.2),
    ],
)
def test_imagenet_presets_are_table_4(
    name: str, size: str, guidance_scale: float, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(presets.resolve(name, ROOT / "presets"))
    configs = check.check_all(path)
    assert configs["generator"].size == configs["generator"].head.size == size
    assert latent_shape(configs["tokenizer"], 256) == LatentShape(16, 16, 16)
    assert configs["sample"].guidance_scale == guidance_scale
    assert (configs["training"].batch_size, configs["training"].lr) == (2048, 8e-4)


@pytest.mark.parametrize("name", ["imagenet256-mar-b-adm", "imagenet256-mar-b-released-adm"])
def test_the_adm_protocol_is_that_of_its_suite(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(presets.resolve(name, ROOT / "presets"))
    configs = check.check_all(path)
    sample, reference, evaluate = (configs[it] for it in ("sample", "reference", "evaluate"))
    labels = balanced_labels(sample.num_images, sample.labels, 1000)
    assert labels.bincount().tolist() == [50] * 1000
    assert reference.statistics_file is not None
    widths = (reference.statistics_file.width, reference.statistics_file.spatial_width)
    assert widths == (2048, 2023)
    assert reference.num_features == 10_000
    assert (evaluate.is_splits, evaluate.is_shuffle, evaluate.neighbours) == (10, False, 3)


@pytest.mark.parametrize(
    ("letter", "size", "guidance_scale"),
    [("b", "base", 2.9), ("l", "large", 3.0), ("h", "huge", 3.2)],
)
def test_released_presets_are_as_published(
    letter: str, size: str, guidance_scale: float, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    for ending, guidance, temperature in (("", guidance_scale, 1.0), ("-unguided", 1.0, 0.95)):
        name = f"imagenet256-mar-{letter}-released{ending}"
        path.write_text(presets.resolve(name, ROOT / "presets"))
        configs = check.check_all(path)
        assert configs["generator"].size == configs["generator"].head.size == size
        assert configs["generator"].weights == "model_ema"
        assert configs["latents"].scale == 0.2325
        assert configs["training"].steps == configs["tokenizer_training"].steps == 0
        sample = configs["sample"]
        assert (sample.num_steps, sample.guidance_scale) == (256, guidance)
        head = sample.head
        assert (head.num_steps, head.temperature, head.x_0_bound) == (100, temperature, None)


def test_the_learning_rate_falls_where_the_paper_says() -> None:
    """Along a cosine for the cross-entropy, else it is constant (MAR, appendix B)."""
    for name in NAMES:
        if name.startswith("paper/"):
            sections = YAML(typ="safe").load(presets.resolve(name, ROOT / "presets"))
            cosine = sections["generator"]["head"]["kind"] == "cross_entropy"
            assert sections["training"]["lr_schedule"] == ("cosine" if cosine else "constant")


@pytest.mark.parametrize(
    "name", ["imagenet256-mar-b", "imagenet256-mar-l", "imagenet256-mar-h", "imagenet512"]
)
def test_published_models_generate_a_token_in_each_step(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(presets.resolve(name, ROOT / "presets"))
    configs = check.check_all(path)
    latent = latent_shape(configs["tokenizer"], configs["data"].image_size)
    assert configs["sample"].num_steps == latent.height * latent.width


def test_an_overlay_keeps_its_own_head_comment_and_its_bases_comments() -> None:
    text = presets.resolve("imagenet256-mar-l", ROOT / "presets")
    assert text.startswith("# MAR-L on ImageNet")
    assert "# MAR-B" not in text
    assert "# 800 epochs of 625 batches" in text


def test_a_replaced_value_takes_its_own_comment(folder: Path) -> None:
    text = presets.resolve("paper/table3-denoiser1024")
    assert "steps: 250000                   # 400 epochs of 625 batches" in text
    overlay = "# Short.\n\nbase: imagenet256-mar-b\ntraining:\n  steps: 9\n  lr: 1.0 # large\n"
    (folder / "presets" / "short.yaml").write_text(overlay)
    text = presets.resolve("short")
    assert "\n  steps: 9\n" in text
    assert "epochs of 625" not in text
    assert "\n  lr: 1.0 # large\n" in text
    assert "\n  gradient_clip: 1.0e+9           # LDM does not clip\n" in text
    assert "\n  labels: null\n" in text
    base = presets.resolve("imagenet256-mar-b")
    assert text.count("\n\n") == base.count("\n\n")


def test_params_yaml_is_the_preset_digits() -> None:
    assert (ROOT / "params.yaml").read_text() == presets.resolve("digits", ROOT / "presets")


def test_a_preset_replaces_a_preset(folder: Path) -> None:
    presets.write("digits")
    presets.write("folder")
    assert (folder / "params.yaml").read_text() == presets.resolve("folder")


def test_edits_are_not_lost(folder: Path) -> None:
    presets.write("digits")
    edited = (folder / "params.yaml").read_text().replace("seed: 0", "seed: 1")
    (folder / "params.yaml").write_text(edited)
    with pytest.raises(ValueError, match="has edits, which would be lost"):
        presets.write("folder")
    assert (folder / "params.yaml").read_text() == edited
    presets.write("folder", replace=True)
    assert (folder / "params.yaml").read_text() == presets.resolve("folder")


def test_an_unknown_preset_gets_a_suggestion(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'foldr' is not a preset; did you mean 'folder'\?"):
        presets.write("foldr")


def test_an_overlay_cannot_add_keys(folder: Path) -> None:
    overlay = "# Wrong.\n\nbase: digits\nsample:\n  guidance: 2.0\n"
    (folder / "presets" / "wrong.yaml").write_text(overlay)
    with pytest.raises(ValueError, match=r"sample\.guidance is not in its base"):
        presets.resolve("wrong")


@pytest.mark.parametrize("name", ["scenes", "scenes-minutes"])
def test_scenes_ask_every_task_equally_often_and_whole_captions(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(presets.resolve(name, ROOT / "presets"))
    configs = check.check_all(path)
    data, sample = configs["data"], configs["sample"]
    assert sample.prompts is None  # captions of held-out scenes, whose tasks take turns
    assert data.num_held_out % len(data.tasks) == 0
    assert sample.num_images % data.num_held_out == 0
    captions = [
        text
        for index in range(100 * len(data.tasks))
        for text in draw_scene(
            data.tasks[index % len(data.tasks)], set(), make_rng("longest", index)
        ).captions
    ]
    assert max(len(text.split()) for text in captions) == configs["generator"].condition_tokens


@pytest.mark.parametrize(
    ("name", "num_tokens", "channels", "parameters"),
    [
        ("tokenizers/imagenet256-vq16", 256, 8, 66_438_427),
        ("tokenizers/imagenet256-kl8", 256, 16, 83_653_863),
        ("tokenizers/imagenet256-detok", 256, 16, 171_712_628),
        ("tokenizers/imagenet256-detok-mar-l", 256, 16, 171_712_628),
        ("tokenizers/imagenet256-sd", 256, 16, 83_653_863),  # as diffusers counts them
        ("tokenizers/imagenet256-flux", 256, 64, 83_819_683),  # as diffusers counts them
        ("digits-detok", 16, 8, 259_384),
        ("digits-vq", 16, 1, 245_579),
        ("digits-vq-continuous", 16, 8, 245_579),
        ("digits-pixels", 16, 48, 0),
        ("scenes", 4, 192, 0),
    ],
)
def test_tokens_follow_the_tokenizer(
    name: str, num_tokens: int, channels: int, parameters: int, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(presets.resolve(name, ROOT / "presets"))
    configs = check.check_all(path)
    latent = latent_shape(configs["tokenizer"], configs["data"].image_size)
    with torch.device("meta"):
        tokenizer = build_tokenizer(configs["tokenizer"])
        model = MAR(configs["generator"], latent, 10, tokenizer.codebook_size)
    assert (model.num_tokens, model.channels) == (num_tokens, channels)
    assert sum(p.numel() for p in tokenizer.parameters()) == parameters
    assert narrow_denoiser_warning(model.config, model.latent) is None or name.startswith(
        ("digits", "scenes")
    )
