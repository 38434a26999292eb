"""Files of the official layout pass through the stages as if what they hold were trained here."""

import csv
import hashlib
import json
import math
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_project as tiny
import torch
from pydantic import TypeAdapter
from ruamel.yaml import YAML
from torch import Tensor
from torch_fidelity import FeatureExtractorInceptionV3

from mar import atomic, generator, tokenizer, weights
from mar.autoencoder import AutoencoderConfig
from mar.data_config import NoData
from mar.generator import MAR, GeneratorConfig
from mar.latents import LatentsInfo
from mar.official_files import read_generator, read_tokenizer
from mar.optimisation import Trainer
from mar.posterior import LatentShape
from mar.released import from_official, to_official
from mar.samples import SampleSet
from mar.sources import collect
from mar.tokenizer import TokenizerConfig
from stages import check, export, previews, train_loop


KL16, MAR_FILE = Path("files/kl16.ckpt"), Path("files/checkpoint-last.pth")
UNTIL_SAMPLES = ("prepare", "train_tokenizer", "encode", "train_generator", "sample")
Change = Callable[[dict[str, Any]], object]


def released_params(**training: Any) -> dict[str, Any]:
    """Return toy sizes for released weights that are used as they are."""
    params: dict[str, Any] = tiny.tiny_params()
    file = {"source": "released", "sha256": None}
    params["tokenizer"] |= {**file, "path": str(KL16)}
    params["generator"] |= {**file, "path": str(MAR_FILE), "weights": "model_ema"}
    params["latents"]["scale"] = 0.2325
    params["tokenizer_training"]["steps"] = 0
    params["training"] |= {"steps": 0, **training}
    return params


def write_params(params: dict[str, Any]) -> None:
    Path("params.yaml").write_text(json.dumps(params))


def random_weights(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Return weights of a model that no training would begin with."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) / math.sqrt(value[..., 0].numel() + 1)
        for name, value in model.state_dict().items()
    }


def write_files(params: dict[str, Any]) -> None:
    """Write files in the official layout, in the present folder."""
    sections = {
        name: {key: value for key, value in params[name].items() if key in kind.model_fields}
        for name, kind in {"tokenizer": AutoencoderConfig, "generator": GeneratorConfig}.items()
    }
    config = AutoencoderConfig.model_validate(sections["tokenizer"])
    codec = tokenizer.build(config)
    model = MAR(GeneratorConfig.model_validate(sections["generator"]), LatentShape(2, 4, 4), 10)
    KL16.parent.mkdir(exist_ok=True)
    torch.save({"model": random_weights(codec, 1)}, KL16)
    content = {
        "model": to_official(random_weights(model, 2)),
        "model_ema": to_official(random_weights(model, 3)),
        "optimizer": {"state": {}},
        "epoch": 799,
        "args": Namespace(model="mar_tiny"),
    }
    torch.save(content, MAR_FILE)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, tracking_uri: str) -> Path:
    """Return a project in which every stage has run with released weights as they are."""
    params = released_params()
    project = tiny.make_project(tmp_path_factory.mktemp("imported") / "project", params)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        patch.setenv("MAR_WORKERS", "0")
        write_files(params)
        for stage in (*UNTIL_SAMPLES, "reconstruct", "reference", "evaluate"):
            tiny.run_stage(stage)
    return project


@pytest.fixture
def copied(project: Path, imported: Path) -> Path:
    """Return a copy of that project, which is the present folder."""
    for name in ("files", "out"):
        shutil.copytree(imported / name, project / name)
    write_params(released_params())
    return project


def written(name: str) -> dict[str, Tensor]:
    return weights.load(Path("out") / name)[0]


def official(which: Any) -> dict[str, Tensor]:
    return from_official(read_generator(MAR_FILE, None, which=which))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], value) for name, value in expected.items()
    )


def metrics(stage: str) -> dict[str, Any]:
    return json.loads((Path("out") / stage / "metrics.json").read_text())


def curves(stage: str) -> list[list[str]]:
    with (Path("out") / stage / "curves.csv").open() as file:
        return list(csv.reader(file))


# As they are


@pytest.mark.usefixtures("copied")
def test_without_a_step_both_sets_are_those_of_the_file() -> None:
    assert same(written("train_tokenizer/tokenizer.safetensors"), read_tokenizer(KL16, None))
    assert same(written("train_generator/generator.safetensors"), official("model"))
    assert same(written("train_generator/ema.safetensors"), official("model_ema"))
    for stage in ("train_tokenizer", "train_generator"):
        assert metrics(stage)["steps"] == 0
        assert curves(stage) == [["step", "loss"]]
        folder = Path("out") / stage / "previews"
        assert [path.name for path in folder.iterdir()] == ["step-0000000.png"]
    samples = SampleSet(Path("out/sample/samples"))
    assert len(samples) == 30
    assert float(samples.stack(list(range(30))).float().std()) > 1
    assert metrics("evaluate")["samples"].keys() == metrics("evaluate")["held_out"].keys()


@pytest.mark.usefixtures("copied")
def test_latents_are_multiplied_by_the_scale_that_is_given() -> None:
    info = LatentsInfo.read(Path("out/encode/latents.json"))
    assert info.divisor == 1 / 0.2325
    assert info.std is not None
    assert info.std != pytest.approx(info.divisor, rel=0.1)  # it is still measured
    assert metrics("encode")["divisor"] == info.divisor


@pytest.mark.usefixtures("copied")
def test_the_files_do_not_say_where_their_weights_were() -> None:
    path = Path("out/train_tokenizer/tokenizer.safetensors")
    before = path.read_bytes()
    shutil.move("files", "elsewhere")
    params = released_params()
    params["tokenizer"]["path"] = str(Path("elsewhere/kl16.ckpt").resolve())
    write_params(params)
    tiny.run_stage("train_tokenizer")
    assert path.read_bytes() == before


@pytest.mark.usefixtures("copied")
def test_the_weights_trained_can_be_chosen_instead_of_their_average() -> None:
    params = released_params()
    params["generator"]["weights"] = "model"
    write_params(params)
    tiny.run_stage("train_generator")
    assert same(written("train_generator/generator.safetensors"), official("model"))
    assert same(written("train_generator/ema.safetensors"), official("model"))


@pytest.mark.usefixtures("copied")
def test_what_was_imported_is_exported_bit_by_bit(tmp_path: Path) -> None:
    assert export.export(tmp_path / "a") == f"{tmp_path}/a holds kl16.ckpt and checkpoint-last.pth"
    assert same(read_tokenizer(tmp_path / "a/kl16.ckpt", None), read_tokenizer(KL16, None))
    again = torch.load(tmp_path / "a/checkpoint-last.pth", weights_only=True)
    assert same(again["model"], read_generator(MAR_FILE, None, which="model"))
    assert same(again["model_ema"], read_generator(MAR_FILE, None, which="model_ema"))
    before = [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())]
    export.export(tmp_path / "a")
    assert [path.read_bytes() for path in sorted((tmp_path / "a").iterdir())] == before


# Fine-tuned


def fine_tune() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tiny.run_stage("train_generator")
    names = ("generator", "ema")
    trained, average = (written(f"train_generator/{name}.safetensors") for name in names)
    return trained, average


@pytest.mark.usefixtures("copied")
def test_a_training_begins_with_the_chosen_weights_and_can_be_continued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_params(released_params(steps=3, preview_steps=2, lr=1e-6, warmup_steps=0))
    trained, average = fine_tune()
    begun = official("model_ema")
    for found in (trained, average):
        assert not any(torch.equal(found[name], begun[name]) for name in begun if "bias" in name)
        assert all(torch.allclose(found[name], begun[name], atol=1e-5) for name in begun)
    assert metrics("train_generator")["loss"] > 0
    tiny.run_stage("sample")

    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    shutil.rmtree("out/train_generator")
    with monkeypatch.context() as patch:
        patch.setattr(train_loop._Interval, "due", lambda _: True)
        patch.setattr(previews, "samples", crash)  # after the second step
        with pytest.raises(KeyboardInterrupt):
            tiny.run_stage("train_generator")
    assert list(Path("work/train_generator").glob("*/checkpoint.pt"))
    begins: list[int] = []
    load = Trainer.load

    def watched(trainer: Trainer[Any], path: Path) -> Any:
        history = load(trainer, path)
        begins.append(trainer.step)
        return history

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "load", watched)
        again = fine_tune()
    assert begins == [1]
    assert same(again[0], trained)
    assert same(again[1], average)


@pytest.mark.usefixtures("copied")
def test_a_tokenizer_is_fine_tuned_and_exported_with_its_generator(tmp_path: Path) -> None:
    params = released_params()
    params["tokenizer_training"] |= {"steps": 2, "lr": 1e-6, "warmup_steps": 0}
    params["latents"]["scale"] = 0.5
    write_params(params)
    for stage in ("train_tokenizer", "encode", "train_generator"):
        tiny.run_stage(stage)
    found = written("train_tokenizer/tokenizer.safetensors")
    begun = read_tokenizer(KL16, None)
    assert not same(found, begun)
    assert all(torch.allclose(found[name], begun[name], atol=1e-4) for name in begun)
    assert "multiplied by 0.5, write that in the place of the 0.2325" in export.export(tmp_path)
    assert same(read_tokenizer(tmp_path / "kl16.ckpt", None), found)


# Without images


@pytest.fixture
def inception(tmp_path: Path) -> dict[str, Any]:
    """Return a section `reference` of Inception with random weights, and statistics of a normal."""
    weights, statistics = tmp_path / "weights.pth", tmp_path / "statistics.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "nowhere")
    torch.save(model.state_dict(), weights)
    np.savez(statistics, mu=np.zeros(2048), sigma=np.eye(2048))
    return {
        "extractor": "inception",
        "num_features": 100,
        "weights": str(weights),
        "weights_sha256": None,
        "statistics": str(statistics),
        "statistics_sha256": None,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("project")
def test_all_stages_pass_without_an_image(tmp_path: Path, inception: dict[str, Any]) -> None:
    names = [f"class {index}" for index in range(10)]
    params = released_params()
    params["data"] = {"source": "none", "image_size": 8, "classes": names}
    params["reference"] = inception
    write_params(params)
    write_files(params)
    for stage in YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"]:
        tiny.run_stage(stage)
    info = LatentsInfo.read(Path("out/encode/latents.json"))
    assert (info.count, info.std, info.divisor) == (0, None, 1 / 0.2325)
    assert json.loads(Path("out/prepare/classes.json").read_text()) == names
    assert same(written("train_generator/ema.safetensors"), official("model_ema"))
    samples = SampleSet(Path("out/sample/samples"))
    assert samples.labels.bincount().tolist() == [3] * 10
    assert metrics("reconstruct").keys() == {"num_images", "run_id"}
    assert metrics("evaluate")["samples"]["fid"] > 0
    assert metrics("evaluate")["held_out"] == {}
    export.export(tmp_path / "export")


def test_the_classes_of_imagenet_are_known_by_name() -> None:
    data = NoData(source="none", image_size=256, classes="imagenet")
    names = collect(data, 0).info.class_names
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")


# Files that are refused


class Foreign:
    """What no official file has."""


def rewrite(path: Path, change: Change) -> None:
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def lose(name: str) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        for tensors in (content["model"], content.get("model_ema", {})):
            tensors.pop(name, None)

    return lambda path: rewrite(path, change)


def reshape(name: str) -> Callable[[Path], None]:
    def change(content: dict[str, Any]) -> None:
        for tensors in (content["model"], content.get("model_ema", {})):
            if name in tensors:
                tensors[name] = tensors[name][..., None]

    return lambda path: rewrite(path, change)


def smuggle(path: Path) -> None:
    rewrite(path, lambda content: content.update(args=Foreign()))


def swap(path: Path) -> None:
    other = MAR_FILE if path == KL16 else KL16
    path.write_bytes(other.read_bytes())


COMMON = [
    (Path.unlink, " is missing, expected a file of torch.save"),
    (truncate, " is damaged or cut off, expected a whole file of torch.save"),
    (smuggle, "Foreign, expected nothing but tensors and plain values"),
    (lambda path: path.write_text("<html>"), " is a web page, expected a file of torch.save"),
]


def refuse(stage: str, *words: str) -> None:
    """Check that a stage ends in a message of one line, and wrote nothing."""
    before = sorted(Path("out").rglob("*"))
    with pytest.raises(ValueError, match=re.escape(words[0])) as raised:
        tiny.run_stage(stage)
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert sorted(Path("out").rglob("*")) == before


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *COMMON,
        (swap, " holds a generator, expected a tokenizer"),
        (lose("quant_conv.weight"), " expected: 1 missing (quant_conv.weight)"),
        (reshape("encoder.conv_in.bias"), "(encoder.conv_in.bias (4, 1), expected (4,))"),
    ],
)
def test_a_damaged_tokenizer_is_refused(damage: Callable[[Path], None], words: str) -> None:
    shutil.rmtree("out/train_tokenizer")
    damage(KL16)
    refuse("train_tokenizer", str(KL16), words)


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        *COMMON,
        (swap, " has the entries 'model', expected 'model_ema' of a generator"),
        (lose("z_proj.weight"), " does not hold a whole generator: z_proj.weight is missing"),
        (
            lose("decoder_norm.bias"),
            " expected: 1 missing (decoder_norm.bias)",
        ),
        (reshape("fake_latent"), "1 of another shape (fake_latent (1, 16, 1), expected (1, 16))"),
        (lose("class_emb.weight"), "class_emb.weight is missing"),
        (
            lambda path: rewrite(path, lambda content: content.pop("model")),
            " has the entries 'model_ema', 'optimizer', 'epoch', 'args', expected 'model' of a",
        ),
    ],
)
def test_a_damaged_generator_is_refused(damage: Callable[[Path], None], words: str) -> None:
    shutil.rmtree("out/train_generator")
    damage(MAR_FILE)
    refuse("train_generator", str(MAR_FILE), words)


@pytest.mark.usefixtures("copied")
def test_another_digest_is_refused_and_the_right_one_is_not() -> None:
    for section, stage, path in (
        ("tokenizer", "train_tokenizer", KL16),
        ("generator", "train_generator", MAR_FILE),
    ):
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        params = released_params()
        params[section]["sha256"] = "0" * 64
        write_params(params)
        refuse(stage, f"{path} has the SHA-256 {found}, expected {'0' * 64}")
        params[section]["sha256"] = found
        write_params(params)
        tiny.run_stage(stage)


@pytest.mark.usefixtures("copied")
def test_a_generator_of_another_size_or_for_other_classes_is_refused() -> None:
    params = released_params()
    params["generator"]["condition_tokens"] = 5
    write_params(params)
    refuse("train_generator", "4 condition tokens, 10 classes), expected a custom size (16 wide")
    params["generator"]["condition_tokens"] = 4
    write_params(params)
    path = Path("out/encode/latents.json")
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "num_classes": 7}))
    refuse("train_generator", f"{MAR_FILE} generates 10 classes, the data have 7")


# Exports that are refused


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        (
            "tokenizer",
            {
                "kind": "vq",
                "codebook_size": 20,
                "commitment_weight": 0.25,
                "revive_dead": True,
            },
            "tokenizer.kind: must be 'kl' in the official layout, got 'vq'",
        ),
        ("tokenizer", {"kind": "pixels"}, "must be 'kl' in the official layout, got 'pixels'"),
    ],
)
@pytest.mark.usefixtures("copied")
def test_tokenizers_without_an_official_layout_are_not_exported(
    tmp_path: Path, section: str, changes: dict[str, Any], words: str
) -> None:
    sizes = released_params()[section] if changes["kind"] == "vq" else {}
    left = ("source", "path", "sha256", "kl_weight")
    config = {**{k: v for k, v in sizes.items() if k not in left}, **changes}
    adapter: TypeAdapter[Any] = TypeAdapter(TokenizerConfig)
    tokenizer.save(export.TOKENIZER, tokenizer.build(adapter.validate_python(config)))
    with pytest.raises(ValueError, match=re.escape(words)):
        export.export(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"attention": "causal", "mask_ratio_min": None},
            "generator.attention: must be 'bidirectional' in the official layout, got 'causal'",
        ),
        (
            {"head": {"kind": "l2"}},
            "generator.head.kind: must be 'diffusion' in the official layout, got 'l2'",
        ),
    ],
)
@pytest.mark.usefixtures("copied")
def test_generators_without_an_official_layout_are_neither_exported_nor_imported(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    section = {**released_params()["generator"], **changes}
    config = GeneratorConfig.model_validate(
        {key: section[key] for key in GeneratorConfig.model_fields}
    )
    digest = atomic.digest(export.TOKENIZER)
    generator.save(export.GENERATOR, MAR(config, LatentShape(2, 4, 4), 10), digest)
    with pytest.raises(ValueError, match=re.escape(words)):
        export.export(tmp_path / "a")
    assert not (tmp_path / "a").exists()

    params = released_params()
    params["generator"] = section
    params["sample"]["num_steps"] = 16
    if "head" in changes:
        params["sample"]["head"] = {"kind": "l2"}
    write_params(params)
    with pytest.raises(ValueError, match=re.escape(words)):
        check.check_all()


@pytest.mark.usefixtures("project")
def test_an_export_before_the_stages_is_one_readable_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "somewhere"])
    with pytest.raises(SystemExit) as ended:
        export.main()
    assert ended.value.code == 1
    expected = f"export: {export.TOKENIZER} is missing; the stage that makes it has not run\n"
    assert capsys.readouterr().err == expected
