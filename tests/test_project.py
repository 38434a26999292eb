"""The lock file, the packages, the environment and the pinned server fit together."""

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line[0] != "#"]
SWITCHES = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
}


def test_lock_has_nothing_but_exact_versions() -> None:
    pin = re.compile(r"[a-z0-9.-]+==[0-9][\w.+]*( ; [\w .'<>=!()]+)?", re.ASCII)
    assert [line for line in LOCK if not pin.fullmatch(line)] == []


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_lock_satisfies_the_declared_range(text: str) -> None:
    wanted = Requirement(text)
    locked = [Requirement(line) for line in LOCK]
    found = [pin for pin in locked if pin.name == canonicalize_name(wanted.name)]
    assert found
    for pin in found:
        (version,) = pin.specifier
        assert wanted.specifier.contains(version.version)


PACKAGES = [
    folder
    for name in ("mar", "stages", "pipelines")
    for folder in (ROOT / name, *sorted((ROOT / name).rglob("*/")))
    if folder.name != "__pycache__"
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_package_init_only_documents(package: Path) -> None:
    """Those of programs also say how these end, before they import anything else."""
    body = ast.parse((package / "__init__.py").read_text()).body
    assert isinstance(body[0], ast.Expr)
    endings = ["from stages import endings", f"endings.install({package.name!r})"]
    collector = ["import gc", "gc.set_threshold(10000)"]
    allowed = {"stages": [*endings, *collector], "pipelines": endings}
    rest = [ast.unparse(node) for node in body[1:]]
    assert sorted(rest) == sorted(allowed.get(str(package.relative_to(ROOT)), []))


def test_every_room_has_tests_in_a_folder_of_its_name() -> None:
    rooms = {folder.name for folder in PACKAGES if folder.parent == ROOT / "mar"}
    tested = {path.parent.name for path in ROOT.glob("tests/mar/*/test_*.py")}
    assert rooms == tested


def test_environment_file_sets_what_nobody_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        monkeypatch.setenv(name, "")  # so that the test leaves no variable behind
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "mine")
    exec((ROOT / "environment.pth").read_text())  # as Python does when it starts in .venv
    found = {name: os.environ[name] for name in SWITCHES}
    assert found == SWITCHES | {"DVC_NO_ANALYTICS": "mine"}


def test_makefile_exports_the_same_environment() -> None:
    exports = dict(re.findall(r"^export (\w+) \?= (\w+)$", (ROOT / "Makefile").read_text(), re.M))
    assert exports.items() >= SWITCHES.items()


def test_prefect_server_builds_with_the_locked_fastapi() -> None:
    from prefect.server.api.server import create_app

    assert create_app(ephemeral=True, ignore_cache=True).routes
