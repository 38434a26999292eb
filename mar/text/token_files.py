"""The tokens of captions in Arrow files, each caption as long as it is, mapped into memory.

A file `tokens-00000.arrow` has a row for each caption, in the order of their numbers: a list of
numbers of words, or of embeddings. Arrow has no bfloat16, of which the 16 bits are kept as int16.

Shapes: B captions, K tokens that a generator takes, T tokens of all captions of a file, E channels.
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int, Shaped
from pyarrow import ipc
from torch import Tensor
from tqdm import tqdm

from mar import distributed
from mar.files import seal
from mar.files.arrow import open_arrow
from mar.text.present import is_present


Dtype = Literal["int32", "float16", "bfloat16", "float32"]

DTYPES = {
    "int32": torch.int32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
COUNT, DTYPE, ENCODER = "count", "dtype", "encoder"  # in the metadata of a file


def file_path(folder: Path, number: int) -> Path:
    """Return the path of a file of tokens."""
    return folder / f"tokens-{number:05d}.arrow"


def write_tokens(path: Path, tokens: Shaped[Tensor, "B K ..."], dtype: Dtype, encoder: str) -> None:
    """Write the tokens of some captions, without the zeros behind them.

    Args:
        path: The file.
        tokens: As `TextEncoder.encode` returns them.
        dtype: Their number type in the file.
        encoder: The identity of the encoder that made them.

    Raises:
        ValueError: an embedding is not finite in that number type.
    """
    present = is_present(tokens)
    kept = tokens[present].to(DTYPES[dtype])  # (T,) or (T, E)
    if not kept.isfinite().all():
        largest = float(tokens.abs().max())
        raise ValueError(
            f"text.cache.dtype: embeddings reach {largest:g}, which is not finite as {dtype!r}; "
            "'bfloat16' has the range of 'float32'"
        )
    if kept.dtype == torch.bfloat16:
        kept = kept.view(torch.int16)
    values = pa.array(kept.flatten().cpu().numpy())
    if tokens.ndim == 3:
        values = pa.FixedSizeListArray.from_arrays(values, tokens.shape[2])
    ends = present.sum(dim=1).cumsum(dim=0).cpu().numpy()
    column = pa.ListArray.from_arrays(np.concatenate([[0], ends]).astype(np.int32), values)
    metadata = {seal.KEY: seal.BLANK, COUNT: str(tokens.shape[1]), DTYPE: dtype}
    metadata[ENCODER] = encoder
    batch = pa.record_batch({"tokens": column}, metadata=metadata)
    with seal.sealing(path) as unfinished, ipc.new_file(str(unfinished), batch.schema) as writer:
        writer.write_batch(batch)


def is_of_encoder(path: Path, encoder: str) -> bool:
    """Return whether a file of tokens is made by the encoder with this identity."""
    return _metadata(open_arrow(path)).get(ENCODER) == encoder


def _metadata(reader: ipc.RecordBatchFileReader) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in reader.schema.metadata.items()}


class _File(NamedTuple):
    """A mapped file.

    Attributes:
        starts: Where the tokens of each caption begin, and where those of the last one end.
        values: All tokens, (T) or (T, E).
    """

    starts: Int[np.ndarray, " _"]
    values: Shaped[np.ndarray, "T ..."]


class TokenFiles:
    """The tokens of all captions, which stay in their files."""

    def __init__(self, folder: Path, count: int, encoder: str) -> None:
        """Open the files of a folder.

        Args:
            folder: Where they are.
            count: Tokens of a caption that a generator takes.
            encoder: The identity of the encoder that must have made them.

        Raises:
            ValueError: a file is damaged, there is none, tokens were cut at another count, or
                another encoder made them.
        """
        self._count, self._encoder = count, encoder
        self._files: list[_File] = []
        self._dtype: Dtype = "int32"
        paths = sorted(folder.glob("tokens-*.arrow"))
        if not paths:
            raise ValueError(f"{folder} holds no tokens of captions; encode_text makes them")
        for path in tqdm(
            paths,
            desc=f"check {folder}",
            unit="file",
            delay=3,
            leave=False,
            disable=not distributed.is_main(),
        ):
            self._files.append(self._open(path))
        self._first = np.cumsum([0, *(len(file.starts) - 1 for file in self._files)])

    def _open(self, path: Path) -> _File:
        seal.check(path)
        reader = open_arrow(path)
        metadata = _metadata(reader)
        if (cut := int(metadata[COUNT])) != self._count:
            raise ValueError(
                f"{path} holds the first {cut} tokens of each caption, and "
                f"generator.condition_tokens is {self._count}; encode_text has to run again"
            )
        if (made_by := metadata.get(ENCODER)) != self._encoder:
            raise ValueError(
                f"{path} holds tokens of the encoder {made_by}, expected {self._encoder}; "
                "encode_text has to run again"
            )
        self._dtype = metadata[DTYPE]  # pyright: ignore[reportAttributeAccessIssue]
        column = reader.get_batch(0).column("tokens")
        values, tail = column.values, ()
        if pa.types.is_fixed_size_list(values.type):
            values, tail = values.values, (values.type.list_size,)
        return _File(column.offsets.to_numpy(), values.to_numpy().reshape(-1, *tail))

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, captions: Int[Tensor, " B"]) -> Shaped[Tensor, "B K ..."]:
        """Return the tokens of some captions by their numbers, with zeros behind the last."""
        numbers = captions.numpy()
        order = np.argsort(numbers, kind="stable")  # read from the begin of a file to its end
        ends = np.searchsorted(numbers[order], self._first)
        values = self._files[0].values
        result = np.zeros((len(numbers), self._count, *values.shape[1:]), values.dtype)
        for file in np.flatnonzero(np.diff(ends)):
            here = order[ends[file] : ends[file + 1]]
            starts, tokens = self._files[file]
            index = numbers[here] - self._first[file]
            place = starts[index, None] + np.arange(self._count)  # (B, K)
            rows, slots = np.nonzero(place < starts[index + 1, None])
            result[here[rows], slots] = tokens[place[rows, slots]]
        found = torch.from_numpy(result)
        if self._dtype == "bfloat16":
            return found.view(torch.bfloat16)
        return found.long() if self._dtype == "int32" else found
