"""LPIPS is that of its published implementations, for torchvision's file of VGG16, and no other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS
from torchmetrics.functional.image.lpips import _LPIPS
from torchvision.models import vgg16

from mar.data.images import to_float
from mar.evaluation import lpips
from mar.evaluation.lpips import LPIPS, SMALLEST, LPIPSScore, feature_difference
from mar.files.atomic import digest


KEY = "section.weights"


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    """Return weights of torchvision's names and shapes, but of its classifier, which is large."""
    with torch.device("meta"):
        shapes = vgg16(weights=None).features.state_dict()
    rng = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {"classifier.6.bias": torch.zeros(1000)}
    for name, value in shapes.items():
        if value.ndim > 1:
            std = (2 / value[0].numel()) ** 0.5
            weights[f"features.{name}"] = std * torch.randn(value.shape, generator=rng)
        else:
            weights[f"features.{name}"] = 0.1 * torch.randn(value.shape, generator=rng)
    return weights


@pytest.fixture(scope="module")
def file(vgg: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file as it is published, in the format before torch 1.6 (59 MB)."""
    path = tmp_path_factory.mktemp("lpips") / "vgg16.pth"
    torch.save(vgg, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def distance(file: Path) -> LPIPS:
    return lpips.load(str(file), digest(file), key=KEY)


@pytest.fixture
def pairs(rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return smooth images of 32 pixels, and others."""
    first, second = 2 * torch.rand(2, 3, 3, 8, 8, generator=rng) - 1
    return interpolate(first, scale_factor=4.0), interpolate(second, scale_factor=4.0)


def test_it_is_torchmetrics(
    distance: LPIPS, vgg: dict[str, Tensor], pairs: tuple[Tensor, Tensor]
) -> None:
    other = _LPIPS(net="vgg", pnet_rand=True)
    load_slices(other.net, vgg)
    found, expected = distance(*pairs), other(*pairs).flatten()
    assert float(expected.min()) > 1e-3
    assert torch.allclose(found, expected, rtol=1e-4)


def test_it_is_torch_fidelity(
    distance: LPIPS,
    vgg: dict[str, Tensor],
    pairs: tuple[Tensor, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = "torch_fidelity.sample_similarity_lpips"
    linear = {
        f"lin{index}.model.1.weight": weight[None, :, None, None]
        for index, weight in enumerate(distance.channel_weights)
    }
    with torch.device("meta"):
        network = vgg16(weights=None)
    network.features.to_empty(device="cpu")
    monkeypatch.setattr(f"{module}.load_state_dict_from_url", lambda *_, **__: linear)
    monkeypatch.setattr(f"{module}.torchvision_load_pretrained_vgg16", lambda: network)
    other = SampleSimilarityLPIPS("lpips")
    load_slices(other.net, vgg)
    grey = [(image + 1) * 127.5 for image in pairs]  # it takes 0 to 255
    assert torch.allclose(distance(*pairs), other(*grey).flatten(), rtol=1e-4)


def load_slices(network: nn.Module, vgg: dict[str, Tensor]) -> None:
    """Load VGG16 where its layers are kept in slices, under their old numbers."""
    names = {name: f"features.{name.partition('.')[2]}" for name in network.state_dict()}
    network.load_state_dict({name: vgg[old] for name, old in names.items()})


def test_equal_images_are_at_no_distance(distance: LPIPS, pairs: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(distance(pairs[0], pairs[0]), torch.zeros(3))


def test_a_gradient_flows_to_the_reconstruction_alone(
    distance: LPIPS, pairs: tuple[Tensor, Tensor]
) -> None:
    images, reconstructions = (part.clone().requires_grad_() for part in pairs)
    distance(images, reconstructions).sum().backward()
    assert reconstructions.grad is not None
    assert images.grad is None
    assert bool((reconstructions.grad.abs().amax(dim=(1, 2, 3)) > 0).all())
    assert [p for p in distance.parameters() if p.requires_grad or p.grad is not None] == []
    # A small step against it brings the images together.
    closer = pairs[1] - 1e-2 * reconstructions.grad / reconstructions.grad.norm()
    assert float(distance(pairs[0], closer).sum()) < float(distance(*pairs).sum())


def test_features_that_are_all_zero_have_a_finite_gradient() -> None:
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    feature_difference(torch.ones(1, 4, 2, 2), features.relu()).sum().backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())


def test_the_difference_is_in_float32_under_autocast(
    distance: LPIPS, pairs: tuple[Tensor, Tensor]
) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = distance(*pairs)
        assert feature_difference(*(part.bfloat16() for part in pairs)).dtype == torch.float32
    assert found.dtype == torch.float32
    assert torch.allclose(found, distance(*pairs), rtol=0.05)


def test_the_smallest_images_are_named(distance: LPIPS) -> None:
    image = torch.zeros(1, 3, SMALLEST, SMALLEST)
    assert distance.depths(image)[-1].shape[2:] == (1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        distance.depths(image[..., 1:])


# Files


def test_a_score_is_the_mean_over_pairs(distance: LPIPS, rng: torch.Generator) -> None:
    first, second = (
        torch.randint(256, (5, 3, 16, 16), generator=rng).to(torch.uint8) for _ in range(2)
    )
    score = LPIPSScore(distance)
    assert score.compute() == {}
    for part in (slice(0, 2), slice(2, 5)):
        score.add(score.measure(first[part], second[part], 0))
    with torch.no_grad():
        expected = distance(to_float(first), to_float(second)).mean()
    assert score.compute() == {"lpips": pytest.approx(float(expected), rel=1e-5)}


def test_another_digest_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match=r"section\.weights_sha256: .*vgg16\.pth has [0-9a-f]"):
        lpips.load(str(file), "0" * 64, key=KEY)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"section\.weights: .*missing\.pth is missing"):
        lpips.load(str(tmp_path / "missing.pth"), None, key=KEY)


@pytest.mark.parametrize("content", [{"lin0.model.1.weight": torch.ones(1)}, [1, 2]])
def test_another_file_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"section\.weights: .* does not hold torchvision's VGG16"):
        lpips.load(str(tmp_path / "weights.pth"), None, key=KEY)


@pytest.mark.usefixtures("without_network")
def test_no_file_and_no_network_say_what_to_do() -> None:
    message = (
        r"section\.weights is null and https://download\.pytorch\.org/models/vgg16-397923af\.pth "
        r"cannot be downloaded .*no network.* the file as .*vgg16-397923af\.pth, or its path as "
        r"section\.weights$"
    )
    with pytest.raises(ValueError, match=message):
        lpips.load(None, None, key=KEY)


def test_an_earlier_download_of_other_weights_is_refused(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    kept.parent.mkdir(parents=True)
    kept.hardlink_to(file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{KEY} is null, and .*397923af\.pth has the SHA-256"):
        lpips.load(None, None, key=KEY)
