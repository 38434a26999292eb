"""Small shards for tests: the same images as files, in Parquet and in tar archives."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def jpeg(index: int, size: int = 40) -> bytes:
    """Return an image of noise, which no two indices share."""
    rng = np.random.default_rng(index)
    file = io.BytesIO()
    pixels = rng.integers(0, 256, (size, size + index % 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Write a file as the Hub does."""
    rows = [
        {"bytes": image, "path": f"{at}.jpg"} if isinstance(image, bytes) else image
        for at, image in enumerate(images)
    ]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, struct), "label": pa.array(labels)})
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        described = {"info": {"features": features}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)


def write_tar(path: Path, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> None:
    """Write a tar archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = files.items() if isinstance(files, Mapping) else files
    with tarfile.open(path, "w") as archive:
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
