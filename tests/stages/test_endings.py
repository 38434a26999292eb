"""A program that is interrupted, or finds no memory, while it imports ends in one line."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
SECONDS = 60  # until a process that does not end is a failure


def start(
    folder: Path, code: str, *command: str, module: str = "torch", **variables: str
) -> "subprocess.Popen[str]":
    """Start a program that finds the given code in the place of torch, or of another module."""
    (folder / f"{module}.py").write_text(code)
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(program: "subprocess.Popen[str]") -> tuple[int, str]:
    """Send SIGINT when the program imports; return its exit code and what it said."""
    assert program.stdout is not None
    assert program.stdout.readline() == "importing\n"
    program.send_signal(signal.SIGINT)
    _, said = program.communicate(timeout=SECONDS)
    return program.returncode, said


SLOW = f"import time\nprint('importing', flush=True)\ntime.sleep({SECONDS})\n"
# As libraries do that try an import and take any failure for a missing part.
DEAF = f"""
import time
print("importing", flush=True)
try:
    time.sleep({SECONDS})
except BaseException:
    time.sleep({SECONDS})
"""


@pytest.mark.parametrize("code", [SLOW, DEAF], ids=["slow", "deaf"])
@pytest.mark.parametrize("program", ["sample", "generate", "check"])
def test_an_interrupted_import_ends_in_one_line(program: str, code: str, tmp_path: Path) -> None:
    found = interrupt(start(tmp_path, code, "-m", f"stages.{program}"))
    assert found == (130, f"{program}: interrupted\n")


def test_an_interrupted_import_of_a_flow_ends_in_one_line(tmp_path: Path) -> None:
    found = interrupt(start(tmp_path, SLOW, "-m", "pipelines.reproduce", module="prefect"))
    assert found == (130, "reproduce: interrupted\n")


def test_of_several_processes_one_says_it(tmp_path: Path) -> None:
    found = interrupt(start(tmp_path, SLOW, "-m", "stages.sample", MAR_LAUNCHED="1"))
    assert found == (130, "")


def test_the_traceback_is_there_for_who_wants_it(tmp_path: Path) -> None:
    code, said = interrupt(start(tmp_path, SLOW, "-m", "stages.sample", MAR_TRACEBACK="1"))
    assert code == -signal.SIGINT
    assert said.endswith("\nKeyboardInterrupt\n")
    assert 'stages/sample.py"' in said


def test_who_imports_the_package_keeps_its_own_handlers(tmp_path: Path) -> None:
    code, said = interrupt(start(tmp_path, SLOW, "-c", "import stages.sample"))
    assert code == -signal.SIGINT
    assert said.endswith("\nKeyboardInterrupt\n")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("MemoryError", "MemoryError"),
        ("OSError(12, 'Cannot allocate memory')", "[Errno 12] Cannot allocate memory"),
        (
            "ImportError('libc10.so: failed to map segment from shared object')",
            "libc10.so: failed to map segment from shared object",
        ),
        ('RuntimeError("can\'t start new thread")', "can't start new thread"),
    ],
)
def test_too_little_memory_ends_in_one_line(error: str, reason: str, tmp_path: Path) -> None:
    program = start(tmp_path, f"raise {error}", "-m", "stages.sample")
    _, said = program.communicate(timeout=SECONDS)
    expected = f"sample: there is not enough memory ({reason})\n"
    assert (program.returncode, said) == (1, expected)


def test_the_real_torch_without_memory_ends_in_one_line(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "stages.sample"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert found.returncode == 1
    assert found.stderr.startswith("sample: there is not enough memory (")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize("error", ["ImportError('no such part')", "OSError(5, 'x')", "1 / 0"])
def test_other_errors_keep_their_traceback(error: str, tmp_path: Path) -> None:
    program = start(tmp_path, f"raise {error}", "-m", "stages.sample")
    _, said = program.communicate(timeout=SECONDS)
    assert program.returncode == 1
    assert said.startswith("Traceback (most recent call last):\n")
    assert 'stages/sample.py"' in said
