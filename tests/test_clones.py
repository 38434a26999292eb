"""Two runs of the whole pipeline, in two clones, agree to the last byte of `dvc.lock`.

So every output is a function of what its stage declares: no time, no run id, no path of a machine.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from tiny_project import tiny_params


ROOT = Path(__file__).parents[1]


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def clone(folder: Path) -> Path:
    """Return a repository with this one's code, as it is now, and toy sizes."""
    folder.mkdir(parents=True)
    for name in ("mar", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / ".dvc" / "plots").mkdir(parents=True)
    shutil.copyfile(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots", dirs_exist_ok=True)
    (folder / "params.yaml").write_text(json.dumps(tiny_params()))
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Toy sizes")
    return folder


def start(folder: Path, tracking_uri: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": tracking_uri}
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_two_clones_give_the_same_lock(tmp_path: Path) -> None:
    # One clone keeps its runs, the other finds no tracking server.
    uris = {"one": f"sqlite:///{tmp_path}/runs.db", "other": "http://127.0.0.1:9"}
    runs = {name: start(clone(tmp_path / name / "mar"), uri) for name, uri in uris.items()}
    for run in runs.values():
        output, _ = run.communicate()
        assert run.returncode == 0, output
    locks = [(tmp_path / name / "mar" / "dvc.lock").read_text() for name in uris]
    assert locks[0] == locks[1]
    stages = YAML(typ="safe").load(locks[0])["stages"]
    assert len(stages) == 9
    recorded = {out["path"] for stage in stages.values() for out in stage["outs"]}
    assert {"out/evaluate/metrics.json", "out/train_generator/curves.csv"} <= recorded
