"""A published file is the one that a path or a digest says, or a message names the wrong key."""

import os
from pathlib import Path

import pytest
import torch

from mar.files.atomic import digest
from mar.files.downloads import PublishedFile, check_file, locate


FILE = PublishedFile("https://example.org/weights-0123abcd.pth", "0123abcd")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("content")
    return path


def test_a_file_is_checked_only_against_a_digest_that_is_given(file: Path) -> None:
    check_file(file, None, key="section.weights")
    check_file(file, digest(file).upper(), key="section.weights")
    with pytest.raises(ValueError, match=rf"section\.weights_sha256: .*file has {digest(file)}, "):
        check_file(file, "0" * 64, key="section.weights")
    with pytest.raises(ValueError, match=r"section\.weights: .* is a folder"):
        check_file(file.parent, None, key="section.weights")


def test_a_given_path_wins_and_is_checked(file: Path) -> None:
    assert locate(str(file), None, FILE, key="section.weights") == file
    with pytest.raises(ValueError, match=r"section\.weights_sha256"):
        locate(str(file), "0" * 64, FILE, key="section.weights")
    with pytest.raises(ValueError, match=r"section\.weights: .* is a folder"):
        locate("", None, FILE, key="section.weights")  # no path is null, not empty
    with pytest.raises(ValueError, match=r"section\.weights: .*nowhere is missing"):
        locate(str(file.with_name("nowhere")), None, FILE, key="section.weights")


def test_a_file_that_may_not_be_read_is_not_called_missing(file: Path) -> None:
    file.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # who may read everything
            os.seteuid(65534)
        with pytest.raises(
            ValueError, match=r"section\.weights: .* cannot be read: permission den"
        ):
            locate(str(file), None, FILE, key="section.weights")
    finally:
        os.seteuid(user)


def test_a_download_is_kept_and_checked(
    file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = PublishedFile(FILE.url, digest(file)[:8])
    asked: list[tuple[str, str]] = []

    def give(url: str, target: str, hash_prefix: str) -> None:
        asked.append((url, hash_prefix))
        Path(target).write_bytes(file.read_bytes())

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", give)
    expected = tmp_path / "hub" / "checkpoints" / "weights-0123abcd.pth"
    for _ in range(2):
        assert locate(None, digest(file), published, key="section.weights") == expected
    assert asked == [(FILE.url, published.hash_prefix)]  # once
    with pytest.raises(ValueError, match=r"section\.weights_sha256"):
        locate(None, "0" * 64, published, key="section.weights")
    expected.write_text("garbage")
    message = (
        rf"section\.weights is null, and .*pth has the SHA-256 {digest(expected)}, .* remove it"
    )
    with pytest.raises(ValueError, match=message):
        locate(None, None, published, key="section.weights")
    assert len(asked) == 1


@pytest.mark.usefixtures("without_network")
def test_without_a_network_the_message_says_what_to_do() -> None:
    message = (
        r"^section\.weights is null and https://example\.org/weights-0123abcd\.pth cannot be "
        r"downloaded \(.*no network.*\); expected in that case: the file as "
        r".*/hub/checkpoints/weights-0123abcd\.pth, or its path as section\.weights, or none$"
    )
    with pytest.raises(ValueError, match=message):
        locate(None, None, FILE, key="section.weights", otherwise=", or none")
