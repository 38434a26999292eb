"""An extractor is the network that its file or name says, or a message says which key is wrong."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from mar.evaluation.classifier_extractor import SCORES
from mar.evaluation.dinov2 import DinoReference
from mar.evaluation.extractors import Extractor, Features, digest_tensors, extract, gather
from mar.evaluation.inception import WIDTH, InceptionReference
from mar.evaluation.reference import measure, read_published
from mar.files.atomic import digest


CPU = torch.device("cpu")


def inception(**values: object) -> InceptionReference:
    settings = {
        "extractor": "inception",
        "num_features": 3,
        "weights": None,
        "weights_sha256": None,
        "statistics": None,
        "statistics_sha256": None,
    }
    return InceptionReference.model_validate({**settings, **values})


class Pictures:
    """Single-coloured images."""

    image_size = 4

    def __len__(self) -> int:
        return 150

    def stack(self, indices: list[int]) -> Tensor:
        values = torch.tensor(indices, dtype=torch.uint8)
        return values[:, None, None, None].expand(-1, 3, 4, 4)


class Brightness(nn.Module):
    """A stand-in for a network: the brightness of an image, and perhaps logits."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([value]))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        brightness = images.float().mean(dim=(1, 2, 3))[:, None] * self.scale
        return brightness, -brightness


# Extraction


def test_features_come_in_the_order_of_the_images() -> None:
    extractor = Extractor("classifier", Brightness(), SCORES["classifier"])
    found = gather(extract(extractor, Pictures(), name="pictures", device=CPU, workers=0))
    assert torch.equal(found.features[:, 0], torch.arange(150.0))
    assert found.logits is not None
    assert torch.equal(found.logits[:, 0], -torch.arange(150.0))
    assert not found.features.requires_grad


def test_features_that_are_not_finite_are_refused() -> None:
    extractor = Extractor("classifier", Brightness(float("inf")), SCORES["classifier"])
    with pytest.raises(
        ValueError, match="the extractor classifier returned nan or infinity for images from 0 on"
    ):
        gather(extract(extractor, Pictures(), name="pictures", device=CPU, workers=0))


def test_gathering_keeps_missing_logits_missing() -> None:
    parts = [Features(torch.zeros(2, 3), None), Features(torch.ones(1, 3), None)]
    assert gather(parts).logits is None
    assert gather(parts).features.sum() == 3


def test_a_digest_tells_tensors_by_name_type_shape_and_value() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(())}
    same = {"b": torch.ones(()), "a": torch.zeros(3, 2).mT}
    others = [
        {"a": torch.zeros(2, 3), "c": torch.ones(())},
        {"a": torch.zeros(3, 2), "b": torch.ones(())},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(())},
        {"a": torch.zeros(2, 3), "b": -torch.ones(())},
    ]
    assert digest_tensors(same) == digest_tensors(tensors)
    assert len({digest_tensors(values) for values in [tensors, *others]}) == 5


# Inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of torch-fidelity's layout with random weights (95 MB)."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], "nowhere")
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # else features hardly depend on the image
            nn.init.kaiming_normal_(module.weight, generator=rng)
    torch.save(model.state_dict(), path)
    return path


class Noise(Dataset[Tensor]):
    """Random images, for us and for torch-fidelity."""

    image_size = 16

    def __init__(self, brightest: int) -> None:
        rng = torch.Generator().manual_seed(brightest)
        self.images = torch.randint(brightest, (4, 3, 16, 16), generator=rng).to(torch.uint8)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]

    def stack(self, indices: list[int]) -> Tensor:
        return self.images[indices]


def test_scores_by_inception_are_those_of_torch_fidelity_called_whole(weights: Path) -> None:
    config = inception(weights=str(weights), weights_sha256=digest(weights))
    extractor = config.load(Path("nowhere"))
    assert extractor.digest() == digest_tensors(torch.load(weights, weights_only=True))
    samples, real = (
        gather(extract(extractor, Noise(brightest), name="noise", device=CPU, workers=0))
        for brightest in (256, 30)
    )
    assert samples.features.shape == real.features.shape == (4, WIDTH)
    assert samples.logits is not None
    options = {"kid_subsets": 1, "kid_subset_size": 4, "rng_seed": 0, "verbose": False}
    found = isc_features_to_metric(samples.logits, 1, rng_seed=0)
    found |= kid_features_to_metric(samples.features.double(), real.features.double(), **options)
    expected = calculate_metrics(
        input1=Noise(256),
        input2=Noise(30),
        feature_extractor_weights_path=str(weights),
        isc=True,
        isc_splits=1,
        kid=True,
        cuda=False,
        save_cpu_ram=True,
        **options,
    )
    for name in (KEY_METRIC_ISC_MEAN, KEY_METRIC_KID_MEAN):
        assert found[name] == pytest.approx(expected[name], rel=1e-3), name
    assert found[KEY_METRIC_KID_MEAN] > 1e-3  # the two sets differ


def test_a_relative_weight_file_begins_at_the_base(weights: Path, tmp_path: Path) -> None:
    config = inception(weights=weights.name)
    assert config.load(Path("nowhere"), base=weights.parent).kind == "inception"
    with pytest.raises(ValueError, match=rf"reference\.weights: {tmp_path}/\S+ is missing"):
        config.load(Path("nowhere"), base=tmp_path)


def test_a_weight_file_may_lie_in_the_home_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(weights.parent))
    config = inception(weights=f"~/{weights.name}")
    assert config.load(Path("nowhere"), base=tmp_path).kind == "inception"


def test_weights_with_another_digest_are_refused(weights: Path) -> None:
    config = inception(weights=str(weights), weights_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"reference\.weights_sha256: .*weights\.pth has [0-9a-f]"):
        config.load(Path("nowhere"))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    config = inception(weights=str(tmp_path / "missing.pth"))
    with pytest.raises(ValueError, match=r"reference\.weights: .*missing\.pth is missing"):
        config.load(Path("nowhere"))


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_weight_file_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"fc.bias": Trap(tmp_path / "sprung")}, tmp_path / "weights.pth")
    config = inception(weights=str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=r"reference\.weights: .* does not hold .* Inception"):
        config.load(Path("nowhere"))
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "sprung")))
    assert (tmp_path / "sprung").exists()  # the trap works


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "weights.pth")
    config = inception(weights=str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=r"reference\.weights: .* does not hold .* Inception"):
        config.load(Path("nowhere"))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_weight_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    config = inception(weights=str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=r"reference\.weights: .* does not hold .* Inception"):
        config.load(Path("nowhere"))


@pytest.mark.usefixtures("without_network")
def test_without_a_network_the_message_names_file_and_key() -> None:
    message = (
        r"reference\.weights is null and https://\S+/weights-inception-2015-12-05-6726825d\.pth "
        r"cannot be downloaded .*no network.* expected .* reference\.weights"
    )
    with pytest.raises(ValueError, match=message):
        inception().load(Path("nowhere"))


def test_an_earlier_download_of_other_weights_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    kept.parent.mkdir(parents=True)
    kept.hardlink_to(weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"reference\.weights is null, and .* has the SHA-256"):
        inception().load(Path("nowhere"))


# Published statistics


def save_statistics(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, allow_pickle=False, **arrays)
    return str(path)


def test_published_statistics_replace_the_training_split(weights: Path, tmp_path: Path) -> None:
    mean, covariance = np.ones(WIDTH), np.eye(WIDTH)
    images = (
        np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    )
    path = save_statistics(tmp_path / "s.npz", mu=mean, sigma=covariance, arr_0=images)
    config = inception(weights=str(weights), statistics=path, statistics_sha256=digest(Path(path)))
    extractor = config.load(Path("nowhere"))
    reference = measure(config, extractor, Pictures(), device=CPU, workers=0)
    assert reference is not None
    assert reference.source == "s.npz"
    relative = inception(weights=str(weights), statistics="s.npz")
    again = measure(relative, extractor, Pictures(), device=CPU, workers=0, base=tmp_path)
    assert again is not None
    assert again.digest() == reference.digest()
    path = save_statistics(tmp_path / "no images.npz", mu=mean, sigma=covariance)
    config = inception(weights=str(weights), statistics=path)
    without = measure(config, extractor, Pictures(), device=CPU, workers=0)
    assert without is not None
    assert len(without.features) == 0
    assert reference.statistics.count is None
    assert torch.equal(reference.statistics.covariance, torch.eye(WIDTH).double())
    expected, _ = extractor.module(torch.from_numpy(images[[0, 1, 3]]).permute(0, 3, 1, 2))
    assert torch.allclose(reference.features, expected, atol=1e-5)


def test_published_statistics_may_come_without_images(tmp_path: Path) -> None:
    path = save_statistics(tmp_path / "s.npz", mu=np.ones(3), sigma=np.eye(3))
    published = read_published(Path(path), width=3, image_size=4)
    assert len(published.keep(10)) == 0
    assert published.stack([]).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.ones(3)}, r"is no \.npz with mu and sigma"),
        ({"mu": np.ones(3), "sigma": np.eye(4)}, r"has sigma \(4, 4\), expected \(3, 3\)"),
        ({"mu": np.ones(2), "sigma": np.eye(2)}, r"has mu \(2,\), expected \(3,\)"),
        (
            {"mu": np.ones(3), "sigma": np.eye(3), "arr_0": np.zeros((2, 8, 8, 3), np.uint8)},
            r"has arr_0 \(8, 8, 3\), expected \(4, 4, 3\)",
        ),
    ],
)
def test_statistics_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    path = save_statistics(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=r"reference\.statistics: .*s\.npz " + message):
        read_published(Path(path), width=3, image_size=4)


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"reference\.statistics: .* is no \.npz"):
        read_published(tmp_path / "s.npz", width=3, image_size=4)


# DINOv2

HUBCONF = """
import torch


class Network(torch.nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))


def dinov2_vitl14():
    return Network()
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch.hub looks for an earlier download; the network is away."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    return tmp_path / "hub"


def test_dinov2_sees_normalised_colours_and_knows_no_classes(hub: Path) -> None:
    repository = hub / "facebookresearch_dinov2_main"
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(HUBCONF)
    config = DinoReference(extractor="dinov2", num_features=10, size="l")
    extractor = config.load(Path("nowhere"))
    found = gather(extract(extractor, Pictures(), name="pictures", device=CPU, workers=0))
    colours = torch.arange(150.0)[:, None] / 255
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(found.features, (colours - mean) / deviation, atol=1e-4)
    assert found.logits is None


@pytest.mark.usefixtures("hub")
def test_without_a_network_dinov2_says_so() -> None:
    config = DinoReference(extractor="dinov2", num_features=10, size="s")
    message = r"reference\.extractor: torch\.hub cannot download facebookresearch/dinov2"
    with pytest.raises(ValueError, match=message):
        config.load(Path("nowhere"))
