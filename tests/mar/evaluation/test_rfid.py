"""rFID is the Frechet distance of reconstructions, from originals and from the training split."""

import pytest
import torch
from torch import Tensor, nn

from mar.evaluation import dinov2, inception
from mar.evaluation.classifier_extractor import SCORES
from mar.evaluation.extractors import Extractor
from mar.evaluation.reconstruction_metrics import ReconstructionDistance, score
from mar.evaluation.score_names import ScoreNames
from mar.evaluation.statistics import Statistics


CPU = torch.device("cpu")


class Brightness(nn.Module):
    """A stand-in for a network, of one feature: the brightness of an image."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images.float().mean(dim=(1, 2, 3))[:, None],)


class Colours(nn.Module):
    """A stand-in of three features: the brightness of each colour."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images.float().mean(dim=(2, 3)),)


def add(distance: ReconstructionDistance, originals: Tensor, reconstructions: Tensor) -> None:
    distance.add(distance.measure(originals, reconstructions, 0))


def train(mean: float, std: float, width: int = 1) -> Statistics:
    covariance = std**2 * torch.eye(width, dtype=torch.float64)
    return Statistics(torch.full((width,), mean, dtype=torch.float64), covariance, 1000)


def pictures(values: Tensor) -> Tensor:
    return values.to(torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16)


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (SCORES["classifier"], "classifier_rfid"),
        (SCORES["untrained"], "untrained_rfid"),
        (inception.SCORES, "rfid"),
        (dinov2.SCORES, "rfd_dinov2"),
    ],
)
def test_both_distances_are_those_of_their_closed_form(
    rng: torch.Generator, names: ScoreNames, name: str
) -> None:
    originals = torch.randint(60, 200, (40,), generator=rng)
    reconstructions = originals // 2 + 30
    distance = ReconstructionDistance(
        Extractor("any", Brightness(), names), train(100.0, 20.0), CPU
    )
    for start in range(0, 40, 9):
        part = slice(start, start + 9)
        add(distance, pictures(originals[part]), pictures(reconstructions[part]))

    def frechet(mean: float, std: float) -> float:
        found = reconstructions.double()
        return (float(found.mean()) - mean) ** 2 + (float(found.std()) - std) ** 2

    x = originals.double()
    assert distance.compute() == {
        f"{name}_held_out_40": pytest.approx(frechet(float(x.mean()), float(x.std())), rel=1e-6),
        f"{name}_train_40": pytest.approx(frechet(100.0, 20.0), rel=1e-6),
    }


def test_it_is_scored_beside_psnr_and_ssim(rng: torch.Generator) -> None:
    originals = torch.randint(256, (8, 3, 16, 16), generator=rng).to(torch.uint8)
    pairs = [(originals[:5], originals[:5] // 2), (originals[5:], originals[5:] // 2)]
    distance = ReconstructionDistance(
        Extractor("any", Colours(), SCORES["classifier"]), train(0, 1, 3), CPU
    )
    scores = score(pairs, [distance])
    assert set(scores) == {"psnr", "ssim", "classifier_rfid_held_out_8", "classifier_rfid_train_8"}
    assert scores["psnr"] == score(pairs)["psnr"]
    half = originals.float().mean(dim=(2, 3)) / 2
    assert scores["classifier_rfid_held_out_8"] > float(half.mean(dim=0).square().sum()) * 0.9


def test_unchanged_images_are_at_no_distance(rng: torch.Generator) -> None:
    originals = torch.randint(256, (50, 3, 16, 16), generator=rng).to(torch.uint8)
    distance = ReconstructionDistance(
        Extractor("any", Colours(), SCORES["classifier"]), train(0, 1, 3), CPU
    )
    add(distance, originals, originals)
    assert distance.compute()["classifier_rfid_held_out_50"] == pytest.approx(0, abs=1e-4)


def test_too_few_images_are_told_and_fewer_give_nothing() -> None:
    distance = ReconstructionDistance(
        Extractor("inception", Colours(), inception.SCORES), train(0, 1, 3), CPU
    )
    assert distance.count_warnings() == []  # of nothing there is nothing to compare
    add(distance, pictures(torch.arange(1)), pictures(torch.arange(1)))
    assert distance.compute() == {}
    add(distance, pictures(torch.arange(2)), pictures(torch.arange(2)))
    (warning,) = distance.count_warnings()
    assert (
        "rfid_3 is too large, as 3 images are too few for the covariance of 3 features" in warning
    )
    assert "from 2048 on it is called rfid" in warning


def test_features_that_are_not_finite_are_refused() -> None:
    class Broken(Brightness):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            return (super().forward(images)[0] / 0,)

    distance = ReconstructionDistance(
        Extractor("broken", Broken(), SCORES["classifier"]), train(0, 1), CPU
    )
    with pytest.raises(
        ValueError, match="the extractor broken returned nan or infinity for images from 0 on"
    ):
        add(distance, pictures(torch.arange(3)), pictures(torch.arange(3)))
