"""The names of the classes are those that were written, or the file is named."""

import json
from pathlib import Path

import pytest

from mar.data.class_names import read_class_names
from mar.data.manifest import write_manifest


def read_or_message(path: Path) -> list[str] | str:
    try:
        return read_class_names(path)
    except ValueError as error:
        return str(error)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_manifest(tmp_path / "manifest.parquet", ["cat", "dog"], [])
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    return tmp_path / "classes.json"


def test_names_come_back_with_and_without_the_manifest(path: Path) -> None:
    assert read_class_names(path) == ["cat", "dog"]
    path.with_name("manifest.parquet").unlink()
    assert read_class_names(path) == ["cat", "dog"]


@pytest.mark.parametrize("value", [[], {}, None, 5, "cat", [1, 2], ["cat", None]])
def test_what_is_no_list_of_names_is_named(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=r"classes\.json is damaged: it is no list of names"):
        read_class_names(path)


def test_a_flipped_bit_is_found_wherever_it_is(path: Path) -> None:
    content = path.read_bytes()
    for offset in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[offset] ^= 1 << bit
            path.write_bytes(damaged)
            found = read_or_message(path)
            # White space may have become white space of another kind.
            assert found == ["cat", "dog"] or "classes.json is damaged" in found


def test_names_that_are_missing_are_noticed(path: Path) -> None:
    path.write_text('["cat"]')
    with pytest.raises(ValueError, match=r"it holds 1 names, expected 2 as in .*manifest\.parquet"):
        read_class_names(path)


def test_a_damaged_manifest_is_named(path: Path) -> None:
    for content in (b"", b"PAR1", b"\xff" * 100):
        path.with_name("manifest.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"manifest\.parquet is damaged"):
            read_class_names(path)
