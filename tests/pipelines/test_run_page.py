"""The page of a flow run shows scores, samples and stages as a person reads them."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import ArtifactSort

from pipelines import run_page
from pipelines.run_page import Outcome, duration


SCORES = {
    "samples": {"classifier_fid": 0.19593170, "classifier_is": 8.61, "classifier_accuracy": 0.976},
    "held_out": {"classifier_fid": 0.08697870, "classifier_is": 8.84},
    "extractor": "classifier",
    "reference": "dceadb96422a",
    "num_samples": 2000,
    "num_reference": 1438,
    "num_held_out": 359,
}
RAN = [Outcome("sample", "ran", 43.2), Outcome("evaluate", "up to date", 0.8)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose samples are drawn and scored."""
    for stage in ("sample", "evaluate"):
        (tmp_path / "out" / stage).mkdir(parents=True)
    (tmp_path / "out/evaluate/metrics.json").write_text(json.dumps(SCORES))
    Image.effect_noise((2400, 1800), 80).save(tmp_path / "out/sample/grid.png")
    return tmp_path


Show = Callable[..., tuple[str, str]]


@pytest.fixture
def show(project: Path, server: None) -> Show:
    """Publish outcomes in a flow, and return the text of the artifact and that of its card."""

    @flow
    def page(outcomes: list[Outcome], failure: str = "") -> tuple[str, str]:
        return run_page.publish(project, outcomes, "key-1", failure)

    return page


def pictures(text: str) -> list[Image.Image]:
    data = re.findall(r"!\[\w+\]\(data:image/\w+;base64,([^)]+)\)", text)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in data]


def test_scores_are_readable_beside_those_of_real_images(show: Show) -> None:
    text, card = show(RAN)
    assert "| classifier FID (lower is better) | 0.1959 | 0.08698 |" in text
    assert "recognised as their class | 97.6 % |  |" in text
    assert card.startswith("classifier FID 0.1959, accuracy 97.6 % !")


def test_scores_of_few_images_say_so_and_how_far_they_spread(project: Path, show: Show) -> None:
    few = {"classifier_fid_500": 0.25, "classifier_fid_500_std": 0.0125, "classifier_fid_inf": 0.2}
    held_out = {"classifier_fid_359": 0.125}
    changes = {"samples": few, "held_out": held_out, "num_reference": None, "warnings": "Few!"}
    (project / "out/evaluate/metrics.json").write_text(json.dumps(SCORES | changes))
    text, card = show(RAN)
    row = "| classifier FID (lower is better), of 500 images | 0.25 \u00b1 0.0125 | 0.125 |"
    assert row in text
    assert "| classifier FID of infinitely many images | 0.2 |  |" in text
    assert "each against published statistics" in text
    assert "Few!" in text
    assert card.startswith("classifier FID 0.25 !")


def test_samples_are_a_picture_of_bounded_size_on_the_card_and_in_the_text(show: Show) -> None:
    for text, width in zip(show(RAN), (1000, 400), strict=True):
        (picture,) = pictures(text)
        assert picture.size == (width, width * 3 // 4)
        assert len(text) < 600_000
    assert "\n" not in show(RAN)[1]  # the page shows a card's first line alone


def test_what_became_of_each_stage_is_said_with_its_time(show: Show) -> None:
    text, _ = show(RAN)
    assert "| `sample` | **ran** | 43.2 s |" in text
    assert "| `evaluate` | up to date | 0.8 s |" in text
    assert "| together | 1 ran, 1 up to date | 44.0 s |" in text


def test_a_failed_run_shows_why_and_no_numbers_of_an_earlier_one(show: Show) -> None:
    outcomes = [Outcome("sample", "failed", 2.0), Outcome("evaluate", "not reached")]
    text, card = show(outcomes, "stage 'sample' failed\nsample.seed must be int")
    assert "sample.seed must be int" in text
    assert "| `evaluate` | not reached |  |" in text
    assert card == "stage 'sample' failed"
    assert "classifier FID" not in text
    assert pictures(text) == []


def test_the_run_in_mlflow_is_a_link_or_a_filter(show: Show) -> None:
    assert "tags.`mar.pipeline` = 'key-1'" in show(RAN)[0]
    page = "http://tracking:5000/#/experiments/1/runs?workflowType=machine_learning"
    text, _ = show([Outcome("sample", "ran", 1.0, page)])
    assert f"]({page}&searchFilter=tags.%60mar.pipeline%60%20%3D%20%27key-1%27)" in text
    assert "no new run" in show([Outcome("sample", "up to date")])[0]


def test_the_artifact_is_kept_by_the_server(show: Show) -> None:
    text, card = show(RAN)
    with get_client(sync_client=True) as client:
        (latest,) = client.read_artifacts(sort=ArtifactSort.CREATED_DESC, limit=1)
    assert (latest.key, latest.type, latest.data) == ("result", "markdown", text)
    assert latest.description == card


def test_durations_are_said_as_people_do() -> None:
    said = [duration(seconds) for seconds in (0.84, 59.9, 61, 3599.6, 7322)]
    assert said == ["0.8 s", "59.9 s", "1 min 01 s", "1 h 00 min", "2 h 02 min"]
