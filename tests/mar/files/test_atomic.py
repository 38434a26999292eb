"""A file holds all of its old content or all of its new content, and a digest tells which."""

import hashlib
import os
from pathlib import Path

import pytest

from mar.files import atomic


def test_new_content_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.txt"
    atomic.write_text(path, "old")
    with atomic.replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError), atomic.replacing(path) as partial:  # noqa: PT012
        partial.write_text("half of the ne")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_that_others_cannot_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_json(path, {"loss": 1.5})
    assert path.read_text() == '{\n  "loss": 1.5\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(path, {"loss": float("nan")})
    assert path.read_text() == '{\n  "loss": 1.5\n}\n'


@pytest.mark.parametrize("links", [True, False])
def test_a_published_folder_takes_the_place_of_the_old_one(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, out = tmp_path / "made", tmp_path / "out" / "deep"
    atomic.write_text(made / "new.txt", "new")
    atomic.write_text(out / "old.txt", "old")
    atomic.write_text(out.with_name("deep.partial") / "half.txt", "of a killed process")
    if not links:

        def refuse(source: str, target: str) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    atomic.publish_folder(made, out)
    assert [path.name for path in out.iterdir()] == ["new.txt"]
    assert [path.name for path in out.parent.iterdir()] == ["deep"]
    assert (out / "new.txt").read_text() == (made / "new.txt").read_text() == "new"
    assert (out / "new.txt").samefile(made / "new.txt") == links


def test_the_digest_is_the_sha_256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert atomic.digest(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_another_digest_is_returned_and_the_expected_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    found = hashlib.sha256(b"abc").hexdigest()
    assert atomic.other_digest(path, "0" * 64) == found
    assert atomic.other_digest(path, found) is None
    assert atomic.other_digest(path, found.upper()) is None
    assert atomic.other_digest(tmp_path / "missing", None) is None  # not even read
