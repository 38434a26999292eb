"""An extractor is the network that its file or name says, or a message says which key is wrong."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torch_fidelity import FeatureExtractorInceptionV3, calculate_metrics
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from mar.evaluation.classifier_extractor import SCORES
from mar.evaluation.dinov2 import DinoReference, DinoV2, resize_positions
from mar.evaluation.extractors import (
    Extractor,
    Features,
    digest_tensors,
    extract,
    extract_batch,
    gather,
)
from mar.evaluation.inception import SPATIAL_WIDTH, WIDTH, InceptionReference
from mar.files.atomic import digest


CPU = torch.device("cpu")


def inception(**values: object) -> InceptionReference:
    settings = {
        "extractor": "inception",
        "split": "train",
        "num_features": 3,
        "weights": None,
        "weights_sha256": None,
        "statistics": None,
        "statistics_sha256": None,
    }
    if isinstance(path := values.get("weights"), str) and Path(path).is_file():
        settings["weights_sha256"] = digest(Path(path))
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
    found = gather(extract(extractor, Pictures(), name="pictures", device=CPU, workers=0), 150)
    assert torch.equal(found.features[:, 0], torch.arange(150.0))
    assert found.logits is not None
    assert torch.equal(found.logits[:, 0], -torch.arange(150.0))
    assert not found.features.requires_grad


def test_features_that_are_not_finite_are_refused() -> None:
    extractor = Extractor("classifier", Brightness(float("inf")), SCORES["classifier"])
    with pytest.raises(
        ValueError, match="the extractor classifier returned nan or infinity for images from 0 on"
    ):
        gather(extract(extractor, Pictures(), name="pictures", device=CPU, workers=0), 150)


def test_gathering_keeps_missing_logits_missing() -> None:
    parts = [Features(torch.zeros(2, 3), None), Features(torch.ones(1, 3), None)]
    assert gather(parts, 3).logits is None
    assert gather(parts, 3).features.sum() == 3


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
        gather(extract(extractor, Noise(brightest), name="noise", device=CPU, workers=0), 4)
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


def test_spatial_features_are_the_first_seven_channels_of_mixed_6(weights: Path) -> None:
    """By torch-fidelity's layers up to there, and then by the formulas of convolution and norm."""
    images = Noise(256).images[:1]
    plain = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))
    inputs: list[Tensor] = []
    plain.Mixed_6d.register_forward_hook(lambda layer, given, output: inputs.append(given[0]))
    plain(images)
    x, layer = inputs[0][0].double(), plain.Mixed_6d.branch1x1  # (768, 17, 17)
    convolved = torch.einsum("chw,oc->ohw", x, layer.conv.weight[:7, :, 0, 0].double())
    norm = layer.bn
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + 0.001).sqrt()
    shifted = convolved - norm.running_mean[:7, None, None]
    expected = (shifted * scale[:7, None, None] + norm.bias[:7, None, None]).clamp(min=0)
    found = extract_batch(inception(weights=str(weights)).load(Path()), images, device=CPU, first=0)
    assert found.spatial is not None
    assert found.spatial.shape == (1, SPATIAL_WIDTH)
    places = [(c, h, w) for h in range(17) for w in range(17) for c in range(7)]
    for index, (c, h, w) in enumerate(places[::97]):
        value = float(found.spatial[0, 97 * index])
        assert value == pytest.approx(float(expected[c, h, w]), rel=1e-4, abs=1e-5)
    assert float(found.spatial.std()) > 0


def test_a_relative_weight_file_begins_at_the_base(weights: Path, tmp_path: Path) -> None:
    config = inception(weights=weights.name, weights_sha256=digest(weights))
    assert config.load(Path("nowhere"), base=weights.parent).kind == "inception"
    with pytest.raises(ValueError, match=rf"reference\.weights: {tmp_path}/\S+ is missing"):
        config.load(Path("nowhere"), base=tmp_path)


def test_a_weight_file_may_lie_in_the_home_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(weights.parent))
    config = inception(weights=f"~/{weights.name}", weights_sha256=digest(weights))
    assert config.load(Path("nowhere"), base=tmp_path).kind == "inception"


def test_weights_with_another_digest_are_refused(weights: Path) -> None:
    config = inception(weights=str(weights), weights_sha256="0" * 64)
    with pytest.raises(ValueError, match=r"reference\.weights_sha256: .*weights\.pth has [0-9a-f]"):
        config.load(Path("nowhere"))


def test_weights_without_a_digest_must_be_the_published_ones(weights: Path) -> None:
    config = inception(weights=str(weights), weights_sha256=None)
    message = (
        r"reference\.weights_sha256: is null, so \S+weights\.pth must be the published "
        rf"weights-inception-2015-12-05-6726825d\.pth, .* but it has {digest(weights)}"
    )
    with pytest.raises(ValueError, match=message):
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


# DINOv2


@pytest.fixture(scope="module")
def dino_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the authors' layout for the smallest network with random weights (88 MB)."""
    names = DinoV2("s").model.state_dict()
    rng = torch.Generator().manual_seed(0)
    values = {name: 0.1 * torch.randn(it.shape, generator=rng) for name, it in names.items()}
    values["pos_embed"] = torch.randn(1, 37 * 37 + 1, 384, generator=rng)
    values["mask_token"] = torch.zeros(1, 384)
    path = tmp_path_factory.mktemp("dinov2") / "weights.pth"
    torch.save(values, path)
    return path


def dino(**values: object) -> DinoReference:
    settings = {"extractor": "dinov2", "split": "train", "num_features": 10, "size": "s"}
    weights = {"weights": None, "weights_sha256": None}
    return DinoReference.model_validate({**settings, **weights, **values})


def test_dinov2_sees_normalised_colours_and_knows_no_classes(dino_weights: Path) -> None:
    extractor = dino(weights=str(dino_weights), weights_sha256=digest(dino_weights)).load(Path())
    images = Noise(256).images[:2]
    found = extract_batch(extractor, images, device=CPU, first=0)
    assert found.logits is None
    assert found.features.shape == (2, 384)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grey = torch.full((1, 3, 16, 16), 51, dtype=torch.uint8)
    seen: list[Tensor] = []
    assert isinstance(extractor.module, DinoV2)
    extractor.module.model.register_forward_hook(lambda layer, given, output: seen.append(given[0]))
    extract_batch(extractor, grey, device=CPU, first=0)
    colours = ((0.2 - mean) / deviation)[None, :, None, None].expand(1, 3, 224, 224)
    assert torch.allclose(seen[0], colours, atol=1e-5)


def test_positions_of_dinov2_are_interpolated_by_its_factor() -> None:
    """Cubic convolution (Keys, 1981, with a = -0.75) at (i + 0.5) * 37 / (side + 0.1) - 0.5."""
    rows = torch.rand(37, generator=torch.Generator().manual_seed(0))
    square = rows[:, None].expand(37, 37).reshape(1, 37 * 37, 1)
    token = torch.tensor([[[5.0]]])
    found = resize_positions(torch.cat([token, square], dim=1), 16)
    assert torch.equal(found[:, :1], token)
    for i in range(1, 15):  # the border is continued by its last values
        place = (i + 0.5) * 37 / 16.1 - 0.5
        near = (1.25 * d**3 - 2.25 * d**2 + 1 for d in (place % 1, 1 - place % 1))
        far = (-0.75 * (d**3 - 5 * d**2 + 8 * d - 4) for d in (place % 1 + 1, 2 - place % 1))
        first, (inner, next_), (outer, last) = int(place), near, far
        kernel = torch.tensor([outer, inner, next_, last])
        expected = float(kernel @ rows[first - 1 : first + 3])
        assert found[0, 1 + 16 * i + 3, 0] == pytest.approx(expected, abs=1e-4)


def test_weights_of_dinov2_are_checked(dino_weights: Path, tmp_path: Path) -> None:
    path = str(dino_weights)
    with pytest.raises(ValueError, match=r"weights_sha256: is null, so .* dinov2_vits14_pretrain"):
        dino(weights=path).load(Path())
    with pytest.raises(ValueError, match=r"reference\.weights: .* weights of size b: "):
        dino(weights=path, weights_sha256=digest(dino_weights), size="b").load(Path())
    trap = tmp_path / "weights.pth"
    torch.save({"pos_embed": Trap(tmp_path / "sprung")}, trap)
    with pytest.raises(ValueError, match=r"reference\.weights: .* does not hold DINOv2's weights"):
        dino(weights=str(trap), weights_sha256=digest(trap)).load(Path())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.usefixtures("without_network")
def test_without_a_network_dinov2_says_which_file_it_wants() -> None:
    message = r"reference\.weights is null and https://\S+/dinov2_vitl14_pretrain\.pth cannot be"
    with pytest.raises(ValueError, match=message):
        dino(size="l").load(Path())
