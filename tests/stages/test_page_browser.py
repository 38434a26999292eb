"""A person generates, looks on, and draws a part again in a browser that reaches nothing else."""

import base64
import io
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stages.sampler import load


BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
PATIENCE = 60_000  # milliseconds: a busy machine is no failure

# Keeps all pictures that the page shows, as those along the way are there for a moment.
KEEP = """() => {
    window.seen = [];
    new MutationObserver((changes) => {  // of a busy browser, it tells many at once
        window.seen.push(...changes.map((change) => change.oldValue).filter(Boolean));
    }).observe(document.getElementById("pictures"),
        {subtree: true, attributes: true, attributeFilter: ["src"], attributeOldValue: true});
}"""


@pytest.fixture
def address(finished: Path) -> Generator[str]:
    """Serve the page as a program, which Ctrl-C ends."""
    command = [sys.executable, "-m", "stages.page", "--port", "0"]
    with subprocess.Popen(command, cwd=finished, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            shown = program.stdout.readline()
            found = re.match(r"(http://localhost:\d+) shows the page", shown)
            assert found, shown
            yield found[1]
        finally:
            program.send_signal(signal.SIGINT)
            ended = program.wait(timeout=60)
    assert ended == 130


def shown_pictures(page: Any) -> np.ndarray:
    urls = page.eval_on_selector_all("#pictures img", "all => all.map(one => one.src)")
    return np.stack([pixels(url) for url in urls])


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_the_page_in_a_browser(address: str, finished: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    requests: list[str] = []
    problems: list[str] = []
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(address)
        expect(page.locator("#generate")).to_be_enabled()
        expect(page.locator("#canvases")).to_be_hidden()
        page.evaluate(KEEP)

        page.locator("#label").fill("7")
        page.locator("#num_images").fill("2")
        page.locator("#seed").fill("5")
        page.locator("#mode").select_option("few steps: 10, DPM-Solver++")
        expect(page.locator("#head-solver")).to_have_value('"dpm++"')
        page.locator("#head-num_steps").fill("3")
        page.locator("#generate").click()
        expect(page.locator("#status")).to_have_text(re.compile(r"^[\d.]+ s per image"))
        images = shown_pictures(page)
        head = {"solver": "dpm++", "num_steps": 3, "temperature": 1.0}
        expected = load(finished / "out").sample(["7", "7"], seed=5, head=head)
        assert np.array_equal(images, expected)
        seen = [pixels(url) for url in page.evaluate("window.seen")]
        shares = {float((picture == 128).all(axis=2).mean()) for picture in seen}
        assert len(shares - {0.0}) >= 2  # it filled in

        page.locator("#pictures img").first.click()
        area = page.locator("#mask").bounding_box()
        assert area is not None
        page.mouse.move(area["x"] + 1, area["y"] + 1)
        page.mouse.down()
        page.mouse.move(area["x"] + area["width"] - 1, area["y"] + 1)
        page.mouse.up()
        painted = pixels(page.evaluate("document.getElementById('mask').toDataURL()"))[:, :, 3] > 0
        assert painted[0].all()
        assert not painted[4:].any()
        page.locator("#seed").fill("6")
        page.locator("#redraw").click()
        expect(page.locator("#stop")).to_be_disabled()
        expect(page.locator("#status")).to_have_text(re.compile(r"^[\d.]+ s per image"))
        originals = np.stack([images[0], images[0]])
        edited = load(finished / "out").inpaint(originals, painted, ["7", "7"], seed=6, head=head)
        assert np.array_equal(shown_pictures(page), edited)

        page.locator("#label").fill("eleven")
        page.locator("#generate").click()
        expect(page.locator("#status")).to_contain_text("'eleven' is neither the name of a class")
        assert np.array_equal(shown_pictures(page), edited)  # a mistake takes nothing away
        browser.close()
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert [text for text in problems if "400 (Bad Request)" not in text] == []  # the last one
