"""Weight files that others published: given by their path, or downloaded once and kept."""

import stat
from dataclasses import dataclass
from pathlib import Path

import torch

from mar.files import atomic


@dataclass(frozen=True)
class PublishedFile:
    """Where a file can be had, and the first digits of its SHA-256."""

    url: str
    hash_prefix: str


def locate(
    path: str | None,
    sha256: str | None,
    published: PublishedFile,
    *,
    key: str,
    otherwise: str = "",
    base: Path = Path(),
) -> Path:
    """Return a weight file: the one that is given, else the published one, downloaded if need be.

    Args:
        path: The file, or nothing.
        sha256: Its SHA-256; nothing checks nothing.
        published: What to take where no file is given.
        key: The key of `params.yaml` that gives the path; the digest's is `<key>_sha256`.
        otherwise: What a user can choose besides, for the message.
        base: Where the path begins, if it is relative.

    Raises:
        ValueError: the file is missing, another one, or cannot be downloaded.
    """
    found = (
        base / Path(path).expanduser() if path is not None else _download(published, key, otherwise)
    )
    check_file(found, sha256, key=key)
    return found


def locate_checked(
    path: str | None, sha256: str | None, published: PublishedFile, *, key: str, base: Path = Path()
) -> Path:
    """Return a weight file as `locate` does; one without a given digest must be the published one.

    Raises:
        ValueError: the file is missing, another one, or cannot be downloaded.
    """
    found = locate(path, sha256, published, key=key, base=base)
    if path is not None and sha256 is None:
        content = atomic.digest(found)
        if not content.startswith(published.hash_prefix):
            raise ValueError(
                f"{key}_sha256: is null, so {found} must be the published "
                f"{Path(published.url).name}, whose SHA-256 begins with {published.hash_prefix}, "
                f"but it has {content}"
            )
    return found


def find_download(published: PublishedFile) -> Path | None:
    """Return an earlier download of a published file, if there is one.

    Raises:
        ValueError: what is there is another file.
    """
    path = _place(published)
    if not path.is_file():
        return None
    if not (found := atomic.digest(path)).startswith(published.hash_prefix):
        raise ValueError(
            f"{path} has the SHA-256 {found}, but {published.url} has {published.hash_prefix}...: "
            "the earlier download is damaged or another file; remove it, and it is downloaded again"
        )
    return path


def _place(published: PublishedFile) -> Path:
    """Return where torch.hub keeps a file."""
    return Path(torch.hub.get_dir(), "checkpoints", Path(published.url).name)


def check_file(path: Path, sha256: str | None, *, key: str) -> None:
    """Check that a file is there and has the digest of the key `<key>_sha256`, if that is given.

    Raises:
        ValueError: it is missing or another one.
    """
    if problem := reading_problem(path):
        raise ValueError(f"{key}: {path} {problem}")
    if found := atomic.other_digest(path, sha256):
        raise ValueError(f"{key}_sha256: {path} has {found}, expected {sha256}")


def reading_problem(path: Path) -> str | None:
    """Return why a file cannot be read, as the end of a sentence; nothing if it can be."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "is a folder"
        if not stat.S_ISREG(mode):
            return "is not a regular file"
        with path.open("rb"):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _download(published: PublishedFile, key: str, otherwise: str) -> Path:
    """Return the file that torch.hub keeps, which is the published one."""
    try:
        if (earlier := find_download(published)) is not None:
            return earlier
    except ValueError as error:
        raise ValueError(f"{key} is null, and {error}") from None
    url, path = published.url, _place(published)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=published.hash_prefix)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"{key} is null and {url} cannot be downloaded ({error}); "
            f"expected in that case: the file as {path}, or its path as {key}{otherwise}"
        ) from None
    return path
