"""Photographs are judged as GenEval's published evaluation reads Mask2Former and CLIP."""

from pathlib import Path

import pytest
import tiny_scorers as tiny
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from mar.evaluation.clip import Clip
from mar.evaluation.detectors.colors import COLORS, TEMPLATES, ColorNamer, cut_out
from mar.evaluation.detectors.mask2former import CLASSES, Mask2Former, Segment, segments
from mar.evaluation.geneval import Box, Detection
from mar.evaluation.photo_scores import PhotoJudge, check_classes
from mar.scenes.wanted import Prompt, Wanted


CPU = torch.device("cpu")


def certain(*classes: int, num_classes: int = 80) -> Tensor:
    """Return class logits of queries that are as good as sure."""
    logits = torch.full((len(classes), num_classes + 1), -20.0)
    logits[range(len(classes)), list(classes)] = 20.0
    return logits


def test_a_query_may_be_of_two_classes_and_masks_may_overlap() -> None:
    logits = torch.full((2, 81), -20.0)
    logits[0, [15, 16]] = 5.0  # cat or dog, half and half
    logits[1, 80] = 5.0  # nothing
    masks = torch.full((2, 4, 4), -9.0)
    masks[0, 1:3, 1:3] = 9.0
    found = list(segments(logits, masks, (4, 4), (4, 4)))
    assert sorted(each.class_name for each in found) == ["cat", "dog"]
    for each in found:
        assert each.detection.score == pytest.approx(0.5, abs=1e-3)
        assert each.detection.box == Box(1, 1, 3, 3)  # ends behind the last pixel


def test_a_score_is_the_classs_times_the_mean_of_the_mask_inside() -> None:
    masks = torch.full((1, 2, 4), -3.0)
    masks[0, 0, 0], masks[0, 0, 1] = 0.5, 2.0
    (found,) = segments(certain(0), masks, (2, 4), (2, 4))
    expected = (torch.tensor(0.5).sigmoid() + torch.tensor(2.0).sigmoid()) / 2
    assert found.detection.score == pytest.approx(float(expected), abs=1e-5)
    masks[0, 0, :2] = -0.1  # an empty mask is no object
    assert list(segments(certain(0), masks, (2, 4), (2, 4))) == []


def test_logits_are_enlarged_before_they_are_cut() -> None:
    masks = torch.tensor([[[4.0, -1.0], [-1.0, -1.0]]])
    (found,) = segments(certain(0), masks, (8, 8), (12, 12))
    twice = interpolate(masks[None], (8, 8), mode="bilinear", align_corners=False)
    twice = interpolate(twice, (12, 12), mode="bilinear", align_corners=False)[0, 0]
    assert torch.equal(found.mask, twice > 0)
    assert found.mask.sum() > 36  # of the one pixel that is cut first there would be 6 x 6
    assert found.detection.box.right > 6


def test_no_more_than_a_hundred_pairs_are_kept() -> None:
    found = list(segments(certain(*[3] * 120), torch.full((120, 2, 2), 5.0), (2, 2), (2, 2)))
    assert len(found) == 100


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_mask2former(tmp_path_factory.mktemp("models") / "detector", label=64)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    folder = tiny.write_clip(tmp_path_factory.mktemp("models") / "clip")
    return Clip(folder, CPU, key="evaluate.geneval.clip")


def random_images(count: int, size: int = 24) -> Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(256, (count, 3, size, size), generator=rng, dtype=torch.uint8)


def test_classes_go_by_their_number(detector_folder: Path) -> None:
    detector = Mask2Former(detector_folder, CPU, key="evaluate.geneval.detector")
    images = random_images(2)
    found = detector.detect(images)
    assert all(found)
    names = {each.class_name for image in found for each in image}
    assert names == {"computer mouse"}  # COCO's mouse, number 64; the folder's name is LABEL_64
    for image in found:
        scores = [each.detection.score for each in image]
        assert scores == sorted(scores, reverse=True)
        assert all(each.mask.shape == (24, 24) for each in image)
    alone = [detector.detect(image[None])[0] for image in images]
    for together, single in zip(found, alone, strict=True):
        assert [each.detection.box for each in together] == [each.detection.box for each in single]


def test_a_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    folder = tiny.write_mask2former(tmp_path, label=0, num_labels=3)
    with pytest.raises(ValueError, match=r"evaluate\.x: .* has 3 classes, expected the 80 of COCO"):
        Mask2Former(folder, CPU, key="evaluate.x")
    with pytest.raises(ValueError, match=r"evaluate\.x: .*config\.json is missing"):
        Mask2Former(tmp_path / "none", CPU, key="evaluate.x")
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"evaluate\.x: .* cannot be read as Mask2Former"):
        Mask2Former(folder, CPU, key="evaluate.x")


def segment(box: Box, name: str = "dog", score: float = 0.9) -> Segment:
    mask = torch.zeros(24, 24, dtype=torch.bool)
    mask[int(box.top) : int(box.bottom), int(box.left) : int(box.right)] = True
    return Segment(name, Detection(box, score), mask)


def test_an_object_is_cut_out_with_grey_around_it() -> None:
    image = random_images(1)[0]
    found = segment(Box(2, 3, 6, 5))
    found.mask[4, 2] = False
    part = cut_out(image, found)
    expected = image[:, 3:5, 2:6].clone()
    expected[:, 1, 0] = 0x99
    assert torch.equal(part, expected)


def test_colours_are_those_of_the_nearest_descriptions(clip: Clip) -> None:
    image, found = random_images(1)[0], [segment(Box(2, 3, 14, 15)), segment(Box(0, 0, 24, 9))]
    expected: list[str] = []
    for each in found:
        direction = clip.images([cut_out(image, each)])[0]
        scores: list[float] = []
        for color in COLORS:
            texts = clip.texts([text.format(color=color, name="dog") for text in TEMPLATES])
            mean = texts.mean(dim=0)
            scores.append(float(direction @ mean / mean.norm()))
        expected.append(COLORS[scores.index(max(scores))])
    assert ColorNamer(clip).name(image, found) == expected
    assert ColorNamer(clip).name(image, []) == []


def test_images_are_judged_by_their_own_prompts(detector_folder: Path, clip: Clip) -> None:
    detector = Mask2Former(detector_folder, CPU, key="evaluate.geneval.detector")
    judge = PhotoJudge(detector, ColorNamer(clip))
    mouse = Prompt("single_object", "a mouse", (Wanted("computer mouse", 1),))
    dog = Prompt("single_object", "a dog", (Wanted("dog", 1),))
    images = random_images(3)
    (surest, *_), *_ = detector.detect(images[2:])
    (color,) = ColorNamer(clip).name(images[2], [surest])
    colored = Prompt("colors", f"a {color} mouse", (Wanted("computer mouse", 1, color),))
    judge.update(images, [mouse, dog, colored])
    scores = judge.compute()
    assert {tag: share.value for tag, share in scores.tasks.items()} == {
        "single_object": 0.5,
        "colors": 1.0,
    }


def test_objects_that_no_detector_knows_are_refused() -> None:
    assert len(set(CLASSES)) == 80
    check_classes([Prompt("colors", "a dog", (Wanted("dog", 1, "red"),))])
    mouse = Prompt("single_object", "a mouse", (Wanted("mouse", 1),))
    with pytest.raises(ValueError, match=r"'mouse' of the prompt 'a mouse' .* 'computer mouse'"):
        check_classes([mouse])
