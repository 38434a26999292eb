"""A clone of a project in which DVC experiments run, so that the project's files stay untouched.

`dvc exp run` in the project itself, even with `--temp`, moves edits into a git stash and brings
them back at its end; if it is killed, they stay in the stash. The clone holds the project's files
as they are now, edits included, and shares its DVC cache. It is kept under `work/`, so that a
killed training continues there.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from mar.files import atomic


PLACE = Path("work", "ablation")
RESULTS = ("out", "dvc.lock")  # not copied: the clone has its own
PARAMS = "params.yaml"


@dataclass(frozen=True)
class Clone:
    """A clone, ready to run experiments.

    Attributes:
        project: The project that was cloned; its experiments are published there.
        folder: The clone.
    """

    project: Path
    folder: Path

    def write_params(self, text: str) -> None:
        """Write the whole of `params.yaml`."""
        (self.folder / PARAMS).write_text(text, encoding="utf-8")

    def find(self, experiment: str) -> str | None:
        """Return the git reference of an experiment of the present parameters and code, or None."""
        for reference in self._references(experiment):
            same = ["diff", "--quiet", reference, "--", PARAMS, "dvc.yaml", *self._inputs()]
            if _git(self.folder, *same, check=False) is not None:
                return reference
        return None

    def discard(self, experiment: str) -> None:
        """Remove all experiments of a name, as DVC refuses to run one whose name is taken."""
        for reference in self._references(experiment):
            _git(self.folder, "update-ref", "-d", reference)

    def publish(self, reference: str) -> None:
        """Copy an experiment to the project, where `dvc exp show` lists it; no file changes."""
        _git(self.project, "fetch", "--quiet", str(self.folder), f"+{reference}:{reference}")

    def metrics(self, reference: str, stage: str) -> dict[str, Any]:
        """Return what a stage measured in an experiment."""
        return json.loads(_git(self.folder, "show", f"{reference}:out/{stage}/metrics.json") or "")

    def note_speeds(self, key: str, stages: Iterable[str]) -> None:
        """Keep how fast stages ran, of which the project holds the last run alone.

        Speeds are no part of an experiment: they differ from run to run.
        """
        notes = self.speeds(key)
        for stage in stages:
            path = self.project / "work" / "speeds" / f"{stage}.json"
            if path.is_file():
                notes[stage] = atomic.read_json(path)
        atomic.write_json(self._speeds(key), notes)

    def speeds(self, key: str) -> dict[str, dict[str, float]]:
        """Return the speeds that were noted under a key, by stage."""
        path = self._speeds(key)
        return atomic.read_json(path) if path.is_file() else {}

    def _speeds(self, key: str) -> Path:
        return self.folder / "work" / "speeds" / f"{key}.json"

    def _references(self, experiment: str) -> list[str]:
        pattern = f"refs/exps/*/*/{experiment}"
        found = _git(self.folder, "for-each-ref", "--format=%(refname)", pattern) or ""
        return found.split()

    def _inputs(self) -> list[str]:
        """Return the files of the project that its stages read."""
        stages = YAML(typ="safe").load(self.folder / "dvc.yaml")["stages"].values()
        paths = {path for stage in stages for path in stage.get("deps", [])}
        return sorted(path for path in paths if not path.startswith("out/"))


@contextmanager
def opened(project: Path) -> Iterator[Clone]:
    """Make the clone, or bring it up to date with the project, and lock it for this process.

    Raises:
        ValueError: Another process has locked it, or the project is not a git and DVC repository.
    """
    folder = project / PLACE
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"{folder} is in use: an ablation or a sweep is already running") from None
    with lock:
        _check_out(project, folder)
        _copy_edits(project, folder)
        _share_cache(project, folder)
        yield Clone(project, folder)


def _check_out(project: Path, folder: Path) -> None:
    """Check out the project's commit in the clone; its results, and what git ignores, stay."""
    if not (folder / ".git").exists():
        _git(folder, "init", "--quiet")
    _git(folder, "fetch", "--quiet", "--no-tags", str(project), "HEAD")
    _git(folder, "checkout", "--quiet", "--force", "--detach", "FETCH_HEAD")
    _git(folder, "clean", "-fdq", *(f"--exclude=/{path}" for path in RESULTS))


def _copy_edits(project: Path, folder: Path) -> None:
    """Copy the project's uncommitted changes and new files, except for results."""
    edited = _git(project, "diff", "--name-only", "-z", "HEAD") or ""
    new = _git(project, "ls-files", "--others", "--exclude-standard", "-z") or ""
    for path in filter(None, (edited + new).split("\0")):
        if Path(path).parts[0] in RESULTS:
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).unlink(missing_ok=True)
        if (project / path).is_symlink() or (project / path).exists():
            shutil.copy2(project / path, folder / path, follow_symlinks=False)
    _git(folder, "add", "--all", "--", ".", *(f":(exclude){path}" for path in RESULTS))


def _share_cache(project: Path, folder: Path) -> None:
    """Let the clone use the project's local DVC settings and its cache."""
    local = Path(".dvc", "config.local")
    if (project / local).is_file():
        shutil.copy2(project / local, folder / local)
    cache = _run([sys.executable, "-m", "dvc", "cache", "dir"], project).strip()
    _run([sys.executable, "-m", "dvc", "cache", "dir", "--local", cache], folder)


def _git(folder: Path, *arguments: str, check: bool = True) -> str | None:
    """Return what git writes; None if it fails and `check` is false."""
    try:
        return _run(["git", *arguments], folder)
    except ValueError:
        if check:
            raise
        return None


def _run(command: list[str], folder: Path) -> str:
    """Return what a short command writes.

    Raises:
        ValueError: It failed; the message is its own.
    """
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ValueError(f"{' '.join(command[:4])}, in {folder}: {result.stderr.strip()}")
    return result.stdout
