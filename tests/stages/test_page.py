"""The page draws what `stages.sampler` draws, names mistakes, and is closed to other machines."""

import base64
import io
import json
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sample_configs import SAMPLERS
from starlette.testclient import TestClient

from mar.heads.registry import HEADS
from stages import page
from stages.page_app import make_app
from stages.page_form import MODES
from stages.sampler import Sampler, load


@pytest.fixture(scope="module")
def sampler(finished: Path) -> Sampler:
    return load(finished / "out")


@pytest.fixture(scope="module")
def client(sampler: Sampler) -> TestClient:
    return TestClient(make_app(sampler, only_loopback=True), base_url="http://localhost")


@pytest.fixture
def asked(client: TestClient) -> dict[str, Any]:
    """Return a request for two images with the settings that the page shows."""
    model = client.get("/model").json()
    return {
        "label": "3",
        "prompt": None,
        "num_images": 2,
        "seed": 5,
        "guidance_scale": model["guidance_scale"],
        "num_steps": model["num_steps"],
        "reconstruction_steps": model["reconstruction_steps"],
        "head": model["modes"][0]["head"],
        "on_the_way": True,
        "image": None,
        "mask": None,
    }


def lines(client: TestClient, asked: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post("/generate", json=asked)
    assert response.status_code == 200
    return [json.loads(line) for line in response.text.splitlines()]


def refused(client: TestClient, asked: dict[str, Any]) -> str:
    response = client.post("/generate", json=asked)
    assert response.status_code == 400
    return response.json()["error"]


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def data_url(picture: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def test_pictures_on_the_way_fill_in_to_those_of_python(
    client: TestClient, sampler: Sampler, asked: dict[str, Any]
) -> None:
    *steps, last = lines(client, asked)
    expected = sampler.sample(["3", "3"], seed=5)
    assert [step["images"] for step in steps] == sorted(step["images"] for step in steps)
    grey = [(pixels(step["pictures"][1]) == 128).all(axis=2).sum() for step in steps]
    assert grey == sorted(grey, reverse=True)
    assert grey[0] > 8 * 8 / 2
    assert len(set(grey)) == 4  # a picture for each generation step
    assert np.array_equal(np.stack([pixels(url) for url in last["pictures"]]), expected)
    assert last["seconds_per_image"] == pytest.approx(last["seconds"] / 2, abs=2e-3)


def test_halves_are_those_of_python(
    client: TestClient, sampler: Sampler, asked: dict[str, Any]
) -> None:
    *steps, last = lines(client, asked | {"reconstruction_steps": 1})
    expected = sampler.sample(["3", "3"], seed=5, reconstruction_steps=1)
    assert np.array_equal(np.stack([pixels(url) for url in last["pictures"]]), expected)
    grey = (pixels(steps[2]["pictures"][0]) == 128).all(axis=2)  # before the last of four steps
    assert np.array_equal(grey[::2, ::2], np.indices((4, 4)).sum(axis=0) % 2 == 1)


def test_an_edit_is_that_of_python(
    client: TestClient, sampler: Sampler, asked: dict[str, Any]
) -> None:
    image = sampler.sample(["7"])[0]
    mask = np.zeros((8, 8, 4), dtype=np.uint8)
    mask[:4] = (229, 57, 53, 255)  # as the brush paints
    edit = {"image": data_url(image), "mask": data_url(mask)}
    last = lines(client, asked | edit)[-1]
    hidden = np.zeros((8, 8), dtype=bool)
    hidden[:4] = True
    expected = sampler.inpaint(np.stack([image, image]), hidden, ["3", "3"], seed=5)
    assert np.array_equal(np.stack([pixels(url) for url in last["pictures"]]), expected)


def test_modes_are_those_that_the_head_has(client: TestClient) -> None:
    model = client.get("/model").json()
    modes = {mode["name"]: mode["head"] for mode in model["modes"]}
    assert modes["annealed: 50 to 5 steps (DiSA)"]["final_num_steps"] == 5
    assert modes["few steps: 10, DPM-Solver++"]["temperature"] == 1.0
    assert modes["exact: 100 steps"]["x_0_bound"] == 4.0  # of the settings, as nobody changes it
    assert not any("Euler" in name for name in modes)  # of flow
    fields = {field["name"]: field for field in model["head"]}
    assert fields["solver"]["choices"] == ["ancestral", "ddim", "dpm++"]
    assert fields["annealing"]["choices"] == ["linear", "cosine", "two-stage"]
    assert fields["num_steps"]["whole"]
    assert not fields["num_steps"]["optional"]
    assert fields["x_0_bound"]["optional"]
    assert not fields["temperature"]["whole"]


@pytest.mark.parametrize("name", MODES)
def test_a_mode_is_one_of_a_single_head(name: str) -> None:
    """The page leaves out what the model's head does not have, so a misspelt mode as well."""

    def fits(kind: str) -> bool:
        try:
            HEADS[kind].sampler.model_validate({**SAMPLERS[kind], **MODES[name]})
        except ValueError:
            return False
        return True

    assert len([kind for kind in HEADS if fits(kind)]) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "eleven"}, "classes: 'eleven' is neither the name of a class"),
        ({"label": None, "prompt": "a 3"}, "prompts: this generator takes classes and no prompts"),
        ({"label": None}, "expected classes, got neither of classes and prompts"),
        ({"num_images": 17}, "^page: request.num_images: .* less than or equal to 16, got 17"),
        ({"seed": 1.5}, "request.seed: .*, got 1.5"),
        ({"guidance_scale": 0.5}, "sample.guidance_scale: .*, got 0.5"),
        ({"num_steps": 99}, "sample.num_steps: must be 1 to 16"),
        ({"reconstruction_steps": 4}, "sample.reconstruction_steps: must be below .*_steps, 4"),
        ({"head": {"num_steps": None}}, "sample.head.num_steps: .*, got None"),
        ({"head": {"speed": 1}}, "sample.head has num_steps, .* no 'speed'"),
        ({"image": "data:image/png;base64,AAAA"}, "needs an image and a mask, got one"),
        ({"image": "data:,AAAA", "mask": "data:,AAAA"}, "the image is not a PNG"),
    ],
)
def test_a_mistake_is_named(
    client: TestClient, asked: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    assert re.search(said, refused(client, asked | change))


def test_edits_of_nothing_or_of_another_size_are_refused(
    client: TestClient, asked: dict[str, Any]
) -> None:
    image, mask = np.zeros((8, 8, 3), dtype=np.uint8), np.zeros((8, 8, 4), dtype=np.uint8)
    edit = asked | {"image": data_url(image), "mask": data_url(mask)}
    assert "nothing of the image is painted" in refused(client, edit)
    edit["image"] = data_url(image[:4])
    assert "the image must have 8 x 8 pixels, got (8, 4)" in refused(client, edit)


def test_an_error_of_a_generation_is_told(
    client: TestClient, sampler: Sampler, asked: dict[str, Any]
) -> None:
    transformer: Any = sampler.weights.mar.transformer
    weight = transformer.condition.class_embedding.weight
    kept = weight[3].clone()
    weight[3] = float("nan")
    last = lines(client, asked)[-1]
    weight[3] = kept
    assert "2 of 2 images hold nan or infinite values, image 0 first" in last["error"]
    assert "pictures" in lines(client, asked)[-1]  # and the page goes on


def test_other_websites_reach_nothing(client: TestClient, asked: dict[str, Any]) -> None:
    assert client.get("/model", headers={"Host": "rebound.example"}).status_code == 400
    form = {"Content-Type": "text/plain"}  # what a form may send without being asked
    assert client.post("/generate", content=json.dumps(asked), headers=form).status_code == 415
    for path in ("/", "/page.js", "/page.css"):
        served = client.get(path)
        assert served.status_code == 200
        assert "default-src 'none'" in served.headers["Content-Security-Policy"]
        assert "http" not in served.text


def test_only_loopback_is_listened_at_unless_told_otherwise() -> None:
    options = page.parse([])
    assert (options.host, options.port) == ("127.0.0.1", 7860)
    assert [page.is_loopback(host) for host in ("127.0.0.1", "localhost", "::1")] == [True] * 3
    assert [page.is_loopback(host) for host in ("0.0.0.0", "", "example.org")] == [False] * 3


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit):
        page.main(["--port", str(taken.getsockname()[1])])
    assert "Address already in use; choose others by --host and --port" in capsys.readouterr().err


def test_weights_that_are_not_there_are_named(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        page.main(["--port", "0"])
    assert "out is not a folder; expected the outputs of a project" in capsys.readouterr().err
