"""Benchmarks that no other test runs work at tiny sizes, and print their numbers."""

import json
import shlex
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.generation import Generation, flop_counter, new_generation
from benchmarks.generation_times import KL16, Row, count_flops, rows
from mar.tokenizers.registry import build_tokenizer


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


def test_flops_by_part_are_those_that_a_generation_takes() -> None:
    sizes = Generation(width=32, blocks=1, heads=2, denoiser_blocks=1, denoiser_width=64)
    sizes = replace(sizes, tokens=16, batch=1, num_steps=3, num_denoising_steps=6)
    row = Row(sizes, annealed=False)
    with torch.device("meta"):
        tokenizer = build_tokenizer(KL16.model_copy(update={"base_channels": 32}))
    flops = count_flops(row, tokenizer)
    step = new_generation(sizes, row.course)
    with flop_counter() as counter:
        step()
    # What is computed once for all denoising steps of a token counts here alone: a tenth.
    assert flops.transformer + flops.head == pytest.approx(counter.get_total_flops(), rel=0.12)
    assert flops.decoder > 0


def test_rows_differ_from_the_first_in_one_size() -> None:
    first, *others = rows(Generation(batch=4, num_steps=16, num_denoising_steps=25))
    assert len(others) == 2 + 1 + 2 + 3
    for other in others:
        fields = vars(first.sizes).items()
        changed = [key for key, value in fields if value != getattr(other.sizes, key)]
        assert len(changed) + other.annealed == 1
