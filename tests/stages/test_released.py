"""Files of the released layout pass through the stages as if what they hold were trained here."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_project as tiny
import torch
from released_project import (
    KL16,
    MAR_FILE,
    released_params,
    write_files,
    write_params,
)
from ruamel.yaml import YAML
from torch import Tensor
from torch_fidelity import FeatureExtractorInceptionV3

from mar.evaluation.score_names import bases
from mar.files import weights
from mar.files.atomic import digest
from mar.latents.info import LatentsInfo
from mar.released.contents import read_generator, read_tokenizer
from mar.released.names import from_released
from mar.sampling.store import SampleSet
from mar.sources.no_images import NoData
from mar.sources.source import Surroundings
from mar.training.checkpoints import Checkpoints
from mar.training.trainer import Trainer
from stages import export, previews, train_loop


def written(name: str) -> dict[str, Tensor]:
    return weights.load(Path("out") / name)[0]


def released(which: Any) -> dict[str, Tensor]:
    return from_released(read_generator(MAR_FILE, None, which=which).tensors)


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
    assert same(
        written("train_tokenizer/tokenizer.safetensors"), read_tokenizer(KL16, None).tensors
    )
    assert same(written("train_generator/generator.safetensors"), released("model"))
    assert same(written("train_generator/ema.safetensors"), released("model_ema"))
    for stage in ("train_tokenizer", "train_generator"):
        assert metrics(stage)["steps"] == 0
        assert curves(stage) == [["step", "loss"]]
        folder = Path("work/previews") / stage
        assert [path.name for path in folder.glob("step-*.png")] == ["step-0000000.png"]
    samples = SampleSet(Path("out/sample/samples"))
    assert len(samples) == 30
    assert float(samples.stack(list(range(30))).float().std()) > 1
    samples_scores, held_out_scores = (metrics("evaluate")[of] for of in ("samples", "held_out"))
    missing = set(bases(held_out_scores)) - set(bases(samples_scores))
    assert missing <= {"classifier_fid_inf"}  # 30 samples are too few to extrapolate from


@pytest.mark.usefixtures("copied")
def test_latents_are_multiplied_by_the_scale_that_is_given() -> None:
    info = LatentsInfo.read(Path("out/encode/latents.json"))
    assert info.latent_std == 1 / 0.2325
    assert info.std is not None
    assert info.std != pytest.approx(info.latent_std, rel=0.1)  # it is still measured
    assert metrics("encode")["latent_std"] == info.latent_std


@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.usefixtures("copied")
def test_a_scale_of_other_latents_stops_the_encoding(scale: float) -> None:
    params = released_params()
    params["latents"]["scale"] = scale
    write_params(params)
    with pytest.raises(ValueError, match=r"latents\.scale: .*, expected about 1, with a scale of"):
        tiny.run_stage("encode")


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
    assert same(written("train_generator/generator.safetensors"), released("model"))
    assert same(written("train_generator/ema.safetensors"), released("model"))


@pytest.mark.usefixtures("copied")
def test_what_was_imported_is_exported_bit_by_bit(tmp_path: Path) -> None:
    assert export.export(tmp_path / "a") == f"{tmp_path}/a holds kl16.ckpt and checkpoint-last.pth"
    assert same(
        read_tokenizer(tmp_path / "a/kl16.ckpt", None).tensors, read_tokenizer(KL16, None).tensors
    )
    again = torch.load(tmp_path / "a/checkpoint-last.pth", weights_only=True)
    assert same(again["model"], read_generator(MAR_FILE, None, which="model").tensors)
    assert same(again["model_ema"], read_generator(MAR_FILE, None, which="model_ema").tensors)
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
    begun = released("model_ema")
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
    assert list(Path("work/train_generator").glob("*/checkpoints/step-*"))
    begins: list[int] = []
    load = Trainer.load

    def watched(trainer: Trainer[Any], checkpoints: Checkpoints, path: Path) -> Any:
        history = load(trainer, checkpoints, path)
        begins.append(trainer.step)
        return history

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "load", watched)
        again = fine_tune()
    assert begins == [2]  # an interrupted picture comes after its step is saved
    assert same(again[0], trained)
    assert same(again[1], average)


@pytest.mark.usefixtures("copied")
def test_a_generator_is_fine_tuned_on_other_classes() -> None:
    """All weights are those of the file but the class embedding, which the data's classes get."""
    content = torch.load(MAR_FILE, weights_only=False)
    for tensors in (content["model"], content["model_ema"]):
        tensors["class_emb.weight"] = torch.randn(7, 16)  # the data have 10
    torch.save(content, MAR_FILE)
    params = released_params(steps=1, lr=1e-6, warmup_steps=0)
    params["generator"]["classes"] = "new"
    params["sample"]["labels"] = [9]
    write_params(params)
    trained, average = fine_tune()
    begun, name = released("model_ema"), "transformer.condition.class_embedding.weight"
    assert begun[name].shape == (7, 16)
    for found in (trained, average):
        assert found.keys() == begun.keys()
        assert found[name].shape == (10, 16)
        assert float(found[name].std()) == pytest.approx(0.02, rel=0.3)  # as they are drawn
        others = [key for key in begun if key != name]
        assert all(torch.allclose(found[key], begun[key], atol=1e-5) for key in others)
    again, _ = fine_tune()
    assert same(again, trained)
    tiny.run_stage("sample")
    assert SampleSet(Path("out/sample/samples")).labels.tolist() == [9] * 30


@pytest.mark.usefixtures("copied")
def test_a_tokenizer_is_fine_tuned_and_exported_with_its_generator(tmp_path: Path) -> None:
    params = released_params()
    params["tokenizer_training"] |= {"steps": 2, "lr": 1e-6, "warmup_steps": 0}
    params["latents"]["scale"] = 0.5
    write_params(params)
    for stage in ("train_tokenizer", "encode", "train_generator"):
        tiny.run_stage(stage)
    found = written("train_tokenizer/tokenizer.safetensors")
    begun = read_tokenizer(KL16, None).tensors
    assert not same(found, begun)
    assert all(torch.allclose(found[name], begun[name], atol=1e-4) for name in begun)
    assert "multiplied by 0.5, write that in the place of the 0.2325" in export.export(tmp_path)
    assert same(read_tokenizer(tmp_path / "kl16.ckpt", None).tensors, found)


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
    spatial = {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    images = np.arange(5 * 8 * 8 * 3, dtype=np.uint32).reshape(5, 8, 8, 3).astype(np.uint8)
    np.savez(statistics, mu=np.zeros(2048), sigma=np.eye(2048), **spatial, arr_0=images)
    return {
        "extractor": "inception",
        "split": None,
        "num_features": 100,
        "weights": str(weights),
        "weights_sha256": digest(weights),
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
    assert (info.count, info.std, info.latent_std) == (0, None, 1 / 0.2325)
    assert json.loads(Path("out/prepare/classes.json").read_text()) == names
    assert same(written("train_generator/ema.safetensors"), released("model_ema"))
    samples = SampleSet(Path("out/sample/samples"))
    assert samples.labels.bincount().tolist() == [3] * 10
    assert metrics("reconstruct")["num_images"] == 0
    assert metrics("reconstruct")["latents"] == {}
    assert not [
        name for name in metrics("reconstruct") if name in {"psnr", "ssim"} or "fid" in name
    ]
    found = metrics("evaluate")
    assert bases(found["samples"]) == [
        "fid", "sfid", "inception_score", "kid", "mmd", "precision", "recall",
    ]  # fmt: skip
    assert found["samples"]["fid_30"] > 0
    assert found["samples"]["sfid_30_std"] > 0
    assert found["held_out"] == {}
    assert found["reference"].startswith("statistics.npz-unknown_count-8px-inception-")
    assert "for want of samples, evaluate has kid_subset_size 2 (not 20)" in found["warnings"]
    assert "no fid_inf: " in found["warnings"]
    export.export(tmp_path / "export")


def test_the_classes_of_imagenet_are_known_by_name() -> None:
    data = NoData(source="none", image_size=256, classes="imagenet")
    names = data.collect(Surroundings(Path(), workers=0, max_pixels=1)).class_names
    assert len(names) == len(set(names)) == 1000
    assert (names[0], names[207], names[999]) == ("tench", "golden retriever", "toilet tissue")
