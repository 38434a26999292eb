"""Which keys differ is told as a person would type it, from what git has committed."""

import subprocess
from pathlib import Path

import pytest

from stages import changes, git


def test_nested_values_have_dotted_names_and_empty_ones_are_kept() -> None:
    content = {"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None, "f": {}}
    assert changes.flatten(content) == {"a.b": 1, "a.c.d": [1, 2], "e": None, "f": {}}


def test_changed_added_and_removed_keys_differ() -> None:
    changed = changes.differing({"same": 1, "old": 1, "a.b": 1}, {"same": 1, "a.b": 2, "new": None})
    assert changed == {"a.b": 2, "new": None, "old": changes.ABSENT}
    assert changes.describe(changed) == "a.b=2, new=null, old removed"


def test_many_keys_are_counted() -> None:
    changed = {f"key{number}": number for number in range(12)}
    assert changes.describe(changed) == "key0=0, key1=1, 10 more keys"
    assert changes.describe({"labels": list(range(100))}).endswith("...")


def test_committed_params_are_those_of_the_commit_an_experiment_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a project" / "in a folder of its repository"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    assert changes.committed() is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert changes.committed() is None
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for scale in (1, 2):
        Path("params.yaml").write_text(f"sample: {{guidance_scale: {scale}, lr: 1e-4}}\n")
        subprocess.run(["git", "add", "-A"], check=True)
        subprocess.run(["git", *who, "commit", "-qm", str(scale)], check=True)
    assert changes.committed() == {"sample.guidance_scale": 2, "sample.lr": 1e-4}
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", git.run("rev-parse", "HEAD~1"))
    assert changes.committed() == {"sample.guidance_scale": 1, "sample.lr": 1e-4}


def test_without_git_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (git.run("status"), git.complaint(), changes.committed()) == ("", "", None)
