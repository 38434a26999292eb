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
read = []
for key in stage["params"]:
    value = params
    for part in key.split("."):
        value = value[part]
    read.append(repr(value if name != "prepare" else {**value, "path": "", "max_unreadable": 0}))
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
    shutil.copyfile(ROOT / "presets" / "folder.yaml", folder / "params.yaml")
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


def edit_code(finished: Path, path: str) -> None:
    file = finished / path
    file.write_text(file.read_text() + "# A comment.\n")


SAMPLED = ["sample", "evaluate"]
GENERATED = ["train_generator", *SAMPLED]


def test_a_second_run_looks_at_the_images_and_does_nothing_else(finished: Path) -> None:
    assert repro(finished) == ["prepare"]


@pytest.mark.parametrize(
    ("path", "stages"),
    [
        ("mar/evaluation/metrics.py", ["reference", "reconstruct", "evaluate"]),
        ("mar/evaluation/score_config.py", ["reference", "reconstruct", "evaluate"]),
        ("mar/released/pickles.py", []),
        ("mar/sources/doubts.py", []),
        ("stages/previews.py", []),
        ("stages/tracking.py", []),
        ("mar/tokenizer_training/adversary.py", ["train_tokenizer"]),
        ("mar/sampling/generate.py", ["sample"]),
        ("mar/model/transformer.py", ["train_generator", "sample"]),
        ("mar/heads/flow.py", ["train_generator", "sample"]),
        ("mar/latents/cache.py", ["encode", "train_generator"]),
    ],
)
def test_an_edit_of_code_runs_what_uses_it(finished: Path, path: str, stages: list[str]) -> None:
    """A comment changes no output, so what comes after these stages stays as it is."""
    edit_code(finished, path)
    assert repro(finished) == ["prepare", *stages]


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("guidance_scale: 3.0", "guidance_scale: 2.0", SAMPLED),
        ("  path: ", "  path: elsewhere/", []),
        ("max_unreadable: 0", "max_unreadable: 3", []),
    ],
)
def test_an_edit_of_parameters_runs_what_reads_them(
    finished: Path, old: str, new: str, stages: list[str]
) -> None:
    replace(finished / "params.yaml", old, new)
    assert repro(finished) == ["prepare", *stages]


def test_the_generators_training_concerns_no_tokenizer(finished: Path) -> None:
    text = (finished / "params.yaml").read_text()
    head, training = text.split("\ntraining:\n")
    path = finished / "params.yaml"
    path.write_text(f"{head}\ntraining:\n{training.replace('lr: ', 'lr: 1', 1)}")
    assert repro(finished) == ["prepare", *GENERATED]
