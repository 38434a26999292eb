"""Every program of `stages` prints help for `--help`, and refuses unknown arguments."""

import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]


def run(program: str, argument: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"stages.{program}", argument],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("program", ["prepare", "check", "generate", "page"])
def test_help_is_printed_and_nothing_is_run(program: str, tmp_path: Path) -> None:
    shown = run(program, "--help", tmp_path)
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"usage: python -m stages.{program} ")
    assert list(tmp_path.iterdir()) == []


def test_every_program_reads_its_command_line() -> None:
    for path in sorted((ROOT / "stages").glob("*.py")):
        text = path.read_text()
        if 'if __name__ == "__main__"' in text:
            read = ("    run(main)\n", "ArgumentParser(", " = parse(arguments)\n")
            assert any(way in text for way in read), path.name


@pytest.mark.parametrize("program", ["sample", "check"])
def test_an_unknown_argument_is_an_error(program: str, tmp_path: Path) -> None:
    refused = run(program, "--fast", tmp_path)
    assert refused.returncode == 2
    assert "unrecognized arguments: --fast" in refused.stderr
    assert list(tmp_path.iterdir()) == []
