"""The flows are programs: help is help, a typo is refused at once, and any folder will do."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL


ROOT = Path(__file__).parents[2]
PROGRAMS = [
    path.stem for path in (ROOT / "pipelines").glob("*.py") if "__main__" in path.read_text()
]


def run(module: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"pipelines.{module}", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", PROGRAMS)
def test_help_explains_every_option_and_starts_nothing(module: str) -> None:
    result = run(module, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: python -m pipelines.{module} ")
    options = set(re.findall(r"--\w+", result.stdout.partition("\n\n")[0]))
    assert options  # and each has words of its own, below or beside it
    for option in options:
        assert re.search(rf"^  {option}( [A-Z. \[\]]+)?\s+\w+ \w+", result.stdout, re.M), option


@pytest.mark.parametrize("module", PROGRAMS)
def test_an_unknown_argument_is_refused(module: str) -> None:
    result = run(module, "--sead", "1")
    assert result.returncode == 2
    assert "unrecognized arguments: --sead" in result.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        ("reproduce", ["trian_generator"], "did you mean 'train_generator'?"),
        ("ablation", ["--rows", "toy/flwo"], "did you mean 'toy/flow'?"),
        ("ablation", ["--name", "Table 1"], "name: must be lower-case letters"),
        ("sweep", ["--name", "My sweep"], "name: must be lower-case letters"),
    ],
)
def test_a_typo_is_refused_in_a_line_before_a_server_is_started(
    module: str, arguments: list[str], message: str
) -> None:
    result = run(module, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "server" not in result.stdout


# The program of a project: a flow without stages, which says whose server and database it uses.
SAY = """
from prefect import flow
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL
from pipelines import program

@flow
def say() -> None:
    print("database", PREFECT_API_DATABASE_CONNECTION_URL.value())
    print("server", PREFECT_API_URL.value())

program.run(lambda: say(return_state=True))
"""
# The same without a flow.
SETTINGS = SAY.replace("say(return_state=True)", "(say.fn(), Completed())[1]").replace(
    "from prefect import flow", "from prefect import flow\nfrom prefect.states import Completed"
)


def say(folder: Path, program: str = SAY, **variables: str | None) -> dict[str, str]:
    """Run the program from a folder; return what it says."""
    merged = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    environment = {name: value for name, value in merged.items() if value is not None}
    command = [sys.executable, "-c", program]
    result = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return dict(line.split(" ", 1) for line in result.stdout.splitlines() if line.count(" ") == 1)


def test_the_server_that_a_person_names_is_used(tmp_path: Path, server: None) -> None:
    url = str(PREFECT_API_URL.value())
    assert say(tmp_path, PREFECT_API_URL=url)["server"] == url


@pytest.mark.slow
def test_without_a_server_the_database_is_the_projects_own_whatever_the_folder(
    tmp_path: Path,
) -> None:
    home = {"HOME": str(tmp_path / "home"), "PREFECT_API_URL": None}
    found = say(tmp_path, **home, PREFECT_HOME=None)
    assert found["database"].endswith(f"{ROOT}/work/prefect/prefect.db")
    found = say(tmp_path, program=SETTINGS, **home, PREFECT_HOME=str(tmp_path / "mine"))
    assert found["database"].endswith(f"{tmp_path}/mine/prefect.db")
