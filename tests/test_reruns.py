"""DVC runs again what an edit concerns, and nothing else: the real graph, with commands that make
outputs of their parameters and inputs alone, as edited comments do not change what code makes.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML


ROOT = Path(__file__).parents[1]
STAND_IN = """
import hashlib, sys
from pathlib import Path
from ruamel.yaml import YAML

name = sys.argv[1]
yaml = YAML(typ="safe")
stage = yaml.load(Path("dvc.yaml"))["stages"][name]
params = yaml.load(Path("params.yaml"))
read = [repr(params[section]) for section in stage["params"]]
for dep in (Path(dep) for dep in stage["deps"] if dep.startswith("out/")):
    read.append((dep if dep.is_file() else dep / "file").read_text())
content = hashlib.sha256("".join(read).encode()).hexdigest()
for kind in ("outs", "metrics", "plots"):
    for entry in stage.get(kind, []):
        path = Path(entry if isinstance(entry, str) else next(iter(entry)))
        path = path if path.suffix else path / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
with Path("ran").open("a") as file:
    file.write(f"{name}\\n")
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose stages have run."""
    folder = tmp_path_factory.mktemp("graph")
    for name in ("mar", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "presets" / "digits.yaml", folder / "params.yaml")
    (folder / "stand_in.py").write_text(STAND_IN)
    yaml = YAML()
    graph = yaml.load(ROOT / "dvc.yaml")
    for name, stage in graph["stages"].items():
        stage["cmd"] = f"{sys.executable} stand_in.py {name}"
    del graph["plots"]
    yaml.dump(graph, folder / "dvc.yaml")
    dvc(folder, "init", "--no-scm", "--quiet")
    assert repro(folder) == list(graph["stages"])
    return folder


def dvc(folder: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, check=True)


def repro(folder: Path) -> list[str]:
    """Return the stages that ran, in their order."""
    ran = folder / "ran"
    ran.write_text("")
    dvc(folder, "repro", "--quiet")
    return ran.read_text().split()


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_second_run_does_nothing(finished: Path) -> None:
    assert repro(finished) == []


def test_the_guidance_concerns_sampling_and_scores(finished: Path) -> None:
    replace(finished / "params.yaml", "guidance_scale: 1.15", "guidance_scale: 1.3")
    assert repro(finished) == ["sample", "evaluate"]


def test_code_of_the_scores_trains_nothing(finished: Path) -> None:
    path = finished / "mar" / "evaluation" / "metrics.py"
    path.write_text(path.read_text() + "# A comment.\n")
    assert repro(finished) == ["reference", "reconstruct", "evaluate"]


def test_the_generators_training_concerns_no_tokenizer(finished: Path) -> None:
    replace(finished / "params.yaml", "  steps: 4000\n", "  steps: 4001\n")
    assert repro(finished) == ["train_generator", "sample", "evaluate"]
