"""Benchmarks that no other test runs work at tiny sizes, and print their numbers."""

import json
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Any:
    """Return a function that runs a benchmark, in an empty folder, and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, options: str) -> dict[str, Any]:
        monkeypatch.setattr("sys.argv", [name, *shlex.split(options)])
        import_module(f"benchmarks.{name}").main()
        return json.loads(capsys.readouterr().out)

    return run


def test_reading_the_cache(numbers: Any) -> None:
    sizes = "--images 64 --files 32 --batch 32 --batches 2 --workers 0 --least 0 --most 100"
    found = numbers("cache_read", f"--folder . {sizes}")
    assert found["ratio_cold"] > 0
    assert found["ratio_warm"] > 0
    assert found["cold"]["bytes"] > 64 * 2 * 16**3 * 2  # means and log variances in 16 bit


def test_encoding(numbers: Any) -> None:
    sizes = "--images 6 --size 16 --batch 4 --base-channels 4"
    (row,) = numbers("encode", f"{sizes} --processes 1 --precisions float32")["rows"]
    assert row["images_per_second"] > 0
    assert len(row["digest"].split()) == 1


def test_sampling(numbers: Any) -> None:
    sizes = "--width 16 --tokens 16 --num-steps 2 --images 1 --rounds 1"
    modes = numbers("sampling", f"{sizes} --modes 'dpm++ 10' 'annealed 50 to 5'")["modes"]
    assert modes["dpm++ 10"]["denoiser_evaluations"] == 2 * 10
    assert modes["annealed 50 to 5"]["denoiser_evaluations"] == 50 + 5
    assert all(mode["seconds_per_image"] > 0 for mode in modes.values())
