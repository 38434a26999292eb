"""The names of the classes: `classes.json`, a plain list for people and programs."""
# pyarrow has no type stubs, so everything that it returns is unknown to pyright.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from mar.files import atomic


Names = Annotated[list[str], Field(min_length=1)]


def read_class_names(path: Path) -> list[str]:
    """Return the name of each class.

    A list has no room for a seal (`mar.files.seal`), so it is compared with the names that the
    manifest beside it has; where there is no manifest, the list is taken as it is.

    Raises:
        ValueError: the file is missing, damaged, or not a list of names.
    """
    value: object = atomic.read_json(path)
    try:
        names: list[str] = TypeAdapter(Names).validate_python(value, strict=True)
    except ValueError:
        raise ValueError(f"{path} is damaged: it is no list of names, but {value!r:.80}") from None
    manifest = path.with_name("manifest.parquet")
    if not manifest.is_file():
        return names
    expected = _names_in(manifest)
    pairs = zip(names, expected, strict=False)
    differing = [f"{name!r}, expected {other!r}" for name, other in pairs if name != other]
    if len(names) != len(expected):
        differing.append(f"{len(names)} names, expected {len(expected)}")
    if differing:
        raise ValueError(f"{path} is damaged: it holds {differing[0]} as in {manifest}")
    return names


def _names_in(manifest: Path) -> list[str]:
    try:
        metadata = pq.read_schema(manifest).metadata
        return json.loads(metadata[b"class_names"])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{manifest} is damaged: it has no names of classes: {error}") from None
