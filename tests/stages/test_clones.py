"""Two runs of the whole pipeline, in two places, write the same bytes, so the same `dvc.lock`.

So every output is a function of what its stage declares: no time, no run id, no path of a machine.
One is DVC's, in a clone; the other runs stage after stage in a process of the tests.
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


ROOT = Path(__file__).parents[2]


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


def files(project: Path, output: str) -> dict[str, bytes]:
    """Return the files of an output, which is a file or a folder, by their names in the project."""
    path = project / output
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(project)): file.read_bytes() for file in found}


@pytest.mark.slow
def test_a_clone_and_another_place_give_the_same_outputs(tmp_path: Path, finished: Path) -> None:
    # That place keeps its runs; the clone finds no tracking server.
    folder = clone(tmp_path / "mar")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    ran = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder,
        env={**os.environ, **environment, "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    stages = YAML(typ="safe").load((folder / "dvc.lock").read_text())["stages"]
    assert len(stages) == 9
    recorded = [out["path"] for stage in stages.values() for out in stage["outs"]]
    assert {"out/evaluate/metrics.json", "out/train_generator/curves.csv"} <= set(recorded)
    for output in recorded:
        made, again = files(folder, output), files(finished, output)
        assert made.keys() == again.keys()
        assert [name for name in made if made[name] != again[name]] == []
