"""The latent cache: moments of all training images, in a few memory-mapped Arrow files.

Where there is a codebook, it holds the index of each latent's code as well.
Shapes: B batch, X channels of moments (c, or twice as many where latents have a variance: means,
then log variances), c channels of a latent, H W latent grid, N rows of a shard, V values of a row
(X H W, or H W).
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, overload

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm import tqdm

from mar import seeds
from mar.data.batches import batch_indices
from mar.files import seal
from mar.files.arrow import open_arrow
from mar.latents.info import LatentsInfo
from mar.latents.posterior import LatentShape, Posterior
from mar.latents.scale import LatentStatistics


def write_latents(
    path: Path,
    moments: Float[Tensor, "B X H W"],
    mirrored: Float[Tensor, "B X H W"] | None,
    *,
    labels: Int[Tensor, " B"],
    names: Sequence[str],
    dtype: str,
    codebook_size: int | None = None,
    code_indices: Int[Tensor, "B H W"] | None = None,
    mirrored_code_indices: Int[Tensor, "B H W"] | None = None,
) -> None:
    """Write the moments of some images as one Arrow file of one record batch.

    Args:
        path: The file.
        moments: Those of the images.
        mirrored: Those of their mirror images, if they are cached.
        labels: The class of each image.
        names: The name of each image.
        dtype: Number type of the moments.
        codebook_size: Codes of the tokenizer, if it has a codebook; then the indices must be given.
        code_indices: The code of each latent.
        mirrored_code_indices: The same for mirror images.

    Raises:
        ValueError: a moment is not finite in the cache's number type; the message names the image.
    """
    columns: dict[str, pa.Array] = {
        "name": pa.array(names, pa.string()),
        "label": pa.array(labels.numpy(), pa.int32()),
        "moments": _column(moments, names, dtype),
    }
    if mirrored is not None:
        columns["mirrored"] = _column(mirrored, names, dtype)
    if codebook_size is not None:
        assert code_indices is not None
        assert (mirrored_code_indices is None) == (mirrored is None)
        columns["code_indices"] = _index_column(code_indices, codebook_size)
        if mirrored_code_indices is not None:
            columns["mirrored_code_indices"] = _index_column(mirrored_code_indices, codebook_size)
    batch = pa.record_batch(columns, metadata={seal.KEY: seal.BLANK})
    with (
        seal.sealing(path) as partial,
        pa.ipc.new_file(str(partial), batch.schema) as writer,
    ):
        writer.write_batch(batch)


def _column(moments: Float[Tensor, "B X H W"], names: Sequence[str], dtype: str) -> pa.Array:
    with np.errstate(over="ignore"):  # what overflows is found below
        rows = moments.flatten(1).cpu().numpy().astype(dtype)
    broken = ~np.isfinite(rows).all(axis=1)
    if broken.any():
        first = int(broken.argmax())
        largest = float(moments[first].abs().max())
        raise ValueError(
            f"{names[first]}: its moments reach {largest:g}, which is not finite as {dtype}"
        )
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _index_column(indices: Int[Tensor, "B H W"], codebook_size: int) -> pa.Array:
    dtype = np.min_scalar_type(codebook_size - 1)  # the smallest unsigned one
    rows = indices.flatten(1).cpu().numpy().astype(dtype)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


class LatentCache:
    """A cache opened for reading; its files stay on the disk and are mapped into memory.

    Raises:
        ValueError: a file is damaged, or there are more or fewer latents than `latents.json` says.
    """

    def __init__(self, folder: Path, info: LatentsInfo) -> None:
        self.info = info
        self._paths = sorted(folder.glob("*.arrow"))
        shards = list(_open_shards(folder))
        # For each content the rows of images and those of mirror images, by shard.
        self._moments = _Rows(shards, "moments", "mirrored", info.flips)
        self._indices = None
        if info.codebook_size is not None:
            self._indices = _Rows(shards, "code_indices", "mirrored_code_indices", info.flips)
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        if self._starts[-1] != info.count:
            raise ValueError(
                f"{folder} holds {self._starts[-1]} latents, latents.json says {info.count}"
            )
        labels = [shard.column("label").to_numpy() for shard in shards]
        self.labels = torch.from_numpy(np.concatenate([np.empty(0, np.int32), *labels])).long()
        self.names: list[str] = []
        for shard in shards:
            self.names += shard.column("name").to_pylist()

    def __len__(self) -> int:
        return self.info.count

    def largest(self) -> Float[Tensor, " N"]:
        """Return the largest absolute value of the latents' means of each image, mirrored or not.

        Raises:
            ValueError: one is not finite; the message names the file and the image.
        """
        shape = self.info.latent
        count = shape.channels * shape.height * shape.width
        found = np.zeros(len(self), np.float32)
        parts = list(self._moments.parts(4096))
        for shard, start, rows in tqdm(parts, desc="check latents", delay=3, leave=False):
            first = int(self._starts[shard]) + start
            values = np.abs(rows.astype(np.float32))
            largest = values[:, :count].max(axis=1)
            broken = ~np.isfinite(values.max(axis=1))
            if broken.any():
                name = self.names[first + int(broken.argmax())]
                raise ValueError(
                    f"{self._paths[shard]}: the latents of {name} hold nan or infinity; the cache "
                    "is at fault, not the training: it must be made again"
                )
            place = slice(first, first + len(rows))
            found[place] = np.maximum(found[place], largest)
        return torch.from_numpy(found)

    def moments(
        self, indices: Int[Tensor, " B"], mirrored: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B X H W"]:
        """Read the moments of some images, of the mirrored image where asked for."""
        values = torch.from_numpy(self._read(self._moments, indices, mirrored)).float()
        return values.reshape(len(indices), -1, self.info.latent.height, self.info.latent.width)

    def code_indices(
        self, indices: Int[Tensor, " B"], mirrored: Bool[Tensor, " B"]
    ) -> Int[Tensor, "B H W"]:
        """Read the code of each latent of some images, of the mirrored image where asked for.

        Raises:
            ValueError: the cache is that of a tokenizer without a codebook.
        """
        if self._indices is None:
            raise ValueError(
                "the latent cache holds no indices: tokenizer.kind has no codebook, expected 'vq'"
            )
        values = self._read(self._indices, indices, mirrored).astype(np.int64)
        shape = self.info.latent
        return torch.from_numpy(values).reshape(-1, shape.height, shape.width)

    def _read(
        self, rows: "_Rows", indices: Int[Tensor, " B"], mirrored: Bool[Tensor, " B"]
    ) -> Shaped[np.ndarray, "B V"]:
        shards = np.searchsorted(self._starts, indices.numpy(), side="right") - 1
        places = zip(shards, indices.tolist(), mirrored.tolist(), strict=True)
        return np.stack([rows.row(int(s), int(i - self._starts[s]), m) for s, i, m in places])

    @overload
    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_step: int,
        content: Literal["moments"] = ...,
        part: slice = ...,
    ) -> Iterator[tuple[Float[Tensor, "B X H W"], Int[Tensor, " B"]]]: ...

    @overload
    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_step: int,
        content: Literal["code_indices"],
        part: slice = ...,
    ) -> Iterator[tuple[Int[Tensor, "B H W"], Int[Tensor, " B"]]]: ...

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_step: int,
        content: Literal["moments", "code_indices"] = "moments",
        part: slice = slice(None),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of all steps from `first_step` on, without end, reading one ahead.

        Images and flips of a step do not depend on the content, which is given with the labels:
        moments (B, X, H, W), or the index of each latent's code (B, H, W).

        Raises:
            ValueError: indices are asked of the cache of a tokenizer without a codebook.
        """
        get = {"moments": self.moments, "code_indices": self.code_indices}[content]
        get(torch.arange(1), torch.zeros(1, dtype=torch.bool))  # refuse now, not at the first batch
        return self._batches(get, batch_size, seed, first_step, part)

    def _batches(
        self,
        get: Callable[[Tensor, Tensor], Tensor],
        batch_size: int,
        seed: int,
        first_step: int,
        part: slice,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        def read(step: int) -> tuple[Tensor, Tensor]:
            indices = batch_indices(len(self), batch_size, seed=seed, step=step)
            chance = torch.rand(batch_size, generator=seeds.make_rng("flips", seed, step))
            mirrored = (chance < 0.5) & torch.tensor(self.info.flips)
            indices, mirrored = indices[part], mirrored[part]
            return get(indices, mirrored), self.labels[indices]

        with ThreadPoolExecutor(1) as reader:
            step, ahead = first_step, reader.submit(read, first_step)
            while True:
                batch = ahead.result()
                step += 1
                ahead = reader.submit(read, step)
                yield batch

    def normalise(
        self,
        moments: Float[Tensor, "B X H W"],
        rng: torch.Generator,
        *,
        batch_size: int | None = None,
        part: slice = slice(None),
    ) -> Float[Tensor, "B c H W"]:
        """Sample the posterior and divide by one number; the mean is left in (MAR's code).

        Args:
            moments: Of a batch, or of a part of it.
            rng: Draws for the whole batch.
            batch_size: Samples of the whole batch, if there are more.
            part: Which of them `moments` holds.
        """
        posterior = Posterior.of(moments, self.info.latent.channels)
        shape = (batch_size or len(moments), *posterior.mean.shape[1:])
        eps = torch.randn(shape, generator=rng, device=rng.device)[part]
        return posterior.sample(eps) / self.info.latent_std


def measure_latents(folder: Path, shape: LatentShape) -> LatentStatistics:
    """Return the statistics of all cached latents; mirror images are left out."""
    statistics = LatentStatistics(shape.channels)
    for shard in _open_shards(folder):
        rows = np.asarray(_rows(shard, "moments"))
        for start in range(0, len(rows), 4096):
            part = torch.from_numpy(rows[start : start + 4096].astype(np.float32))
            moments = part.reshape(len(part), -1, shape.height, shape.width)
            statistics.update(Posterior.of(moments, shape.channels))
    return statistics


class _Rows:
    """One content of all shards: a matrix for images, another for mirror images."""

    def __init__(
        self, shards: Sequence[pa.RecordBatch], name: str, mirrored: str, flips: bool
    ) -> None:
        self._plain = [_rows(shard, name) for shard in shards]
        self._mirrored = [_rows(shard, mirrored) for shard in shards if flips]

    def row(self, shard: int, index: int, mirrored: bool) -> Shaped[np.ndarray, " V"]:
        return (self._mirrored if mirrored else self._plain)[shard][index]

    def parts(self, size: int) -> Iterator[tuple[int, int, Shaped[np.ndarray, "N V"]]]:
        """Yield `size` rows at a time, those of mirror images as well, with shard and first row."""
        for matrices in (self._plain, self._mirrored):
            for shard, rows in enumerate(matrices):
                for start in range(0, len(rows), size):
                    yield shard, start, rows[start : start + size]


def _open_shards(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the shards of a cache, each compared with its seal first."""
    paths = sorted(folder.glob("*.arrow"))
    for path in tqdm(paths, desc=f"check {folder}", unit="file", delay=3, leave=False):
        seal.check(path)
        yield open_arrow(path).get_batch(0)


def _rows(shard: pa.RecordBatch, column: str) -> Shaped[np.ndarray, "N V"]:
    """Return a column of fixed-size lists as a matrix, without copying it."""
    values = shard.column(column)
    return values.flatten().to_numpy(zero_copy_only=True).reshape(len(values), -1)
