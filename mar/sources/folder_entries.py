"""What lies in a folder: folders and files, without what operating systems leave there."""

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


# In lower case. What begins with a dot is hidden, and needs no entry: .DS_Store, ._a.jpg, .Trashes.
JUNK = frozenset(
    {
        "__macosx",  # archives made on macOS
        "icon\r",
        "network trash folder",
        "temporary items",
        "thevolumesettingsfolder",
        "thefindbycontentfolder",
        "thumbs.db",  # Windows
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "autorun.inf",
        "$recycle.bin",
        "$extend",
        "recycler",
        "system volume information",
        "$winreagent",
        "msocache",
        "config.msi",
        "msdownld.tmp",
        "lost+found",  # Linux
        "lost.dir",  # Android
        "@eadir",  # Synology
        "@appstore",
        "@database",
        "@docker",
        "@s2s",
        "@tmp",
        "@sharebin",
        "@sharesnap",
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "@__thumb",
        "~snapshot",  # NetApp
        "__pycache__",
        "_gsdata_",  # GoodSync
    }
)
RESCUED = re.compile(r"found\.\d{3}")  # what chkdsk of Windows saved from a damaged disk


class Entry(NamedTuple):
    """A folder or file: its name on the disk, and whether it is a folder."""

    name: str
    is_folder: bool


@dataclass
class Skipped:
    """What was passed over while folders were walked.

    Attributes:
        junk: Paths of hidden files and folders and of those of operating systems.
        loops: Paths of links to a folder in which they lie.
    """

    junk: set[str] = field(default_factory=set[str])
    loops: set[str] = field(default_factory=set[str])


def entries(root: Path, prefix: str, skipped: Skipped) -> list[Entry]:
    """Return what lies in the folder `prefix` of `root`, sorted by name; links are followed.

    Raises:
        ValueError: the folder cannot be read, or holds a folder whose name is not UTF-8.
    """
    found: list[Entry] = []
    folder = root / prefix
    try:
        with os.scandir(folder) as listed:
            for entry in listed:
                if is_junk(entry.name):
                    skipped.junk.add(prefix + entry.name)
                elif not _is_folder(entry):
                    found.append(Entry(entry.name, False))
                elif entry.is_symlink() and _surrounds(folder / entry.name, folder):
                    skipped.loops.add(prefix + entry.name)
                else:
                    require_text(folder / entry.name)
                    found.append(Entry(entry.name, True))
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}") from None
    return sorted(found)


def is_junk(name: str) -> bool:
    """Tell whether a file or folder is hidden or an operating system's."""
    folded = name.casefold()
    return name.startswith((".", "~$")) or folded in JUNK or bool(RESCUED.fullmatch(folded))


def require_text(path: Path) -> None:
    """Refuse a path that cannot be written as text.

    Raises:
        ValueError: its bytes are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"a name is not UTF-8: {show(path)}; rename it") from None


def show(path: Path | str) -> str:
    """Return a path as text that can be printed and seen.

    Bytes that are no text, line breaks, codes of terminals, and spaces of another kind or of no
    width are written as in Python: `\\xe9`, `\\n`, `\\x1b`, `\\xa0`, `\\u200b`.
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def same_text(name: str) -> str:
    """Return the one spelling of a name whose accents may be stored in two ways.

    macOS takes letters and accents apart (NFD), other systems keep them as typed (NFC).
    """
    return unicodedata.normalize("NFC", name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _surrounds(link: Path, folder: Path) -> bool:
    """Tell whether a link leads to the folder in which it lies, or to one around that."""
    return any(link.samefile(other) for other in (folder, *folder.parents))
