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

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from tqdm import tqdm

from mar import distributed, seeds
from mar.data.batches import batch_indices
from mar.files import seal
from mar.files.arrow import open_arrow
from mar.latents.info import LatentsConfig, LatentsInfo
from mar.latents.posterior import LatentShape, Posterior
from mar.latents.reading import fits, held, read_ahead
from mar.latents.rows import MappedRows, column_rows, widened
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


def image_bytes(
    moments: Float[Tensor, "B X H W"],
    code_indices: Int[Tensor, "B H W"] | None,
    config: LatentsConfig,
    codebook_size: int | None,
) -> int:
    """Return what an image takes in a file of a cache, but for its name and label."""
    size = moments[0].numel() * np.dtype(config.dtype).itemsize
    if code_indices is not None and codebook_size is not None:
        size += code_indices[0].numel() * _index_type(codebook_size).itemsize
    return size * (2 if config.flips else 1)


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
    rows = indices.flatten(1).cpu().numpy().astype(_index_type(codebook_size))
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _index_type(codebook_size: int) -> np.dtype[Any]:
    return np.min_scalar_type(codebook_size - 1)  # the smallest unsigned one


class LatentCache:
    """A cache opened for reading; its files stay on the disk and are mapped into memory.

    Opening reads every file once from begin to end, so where the memory has room for the cache, it
    is read from there afterwards.

    Raises:
        ValueError: a file is damaged, or there are more or fewer latents than `latents.json` says.
    """

    def __init__(self, folder: Path, info: LatentsInfo, *, on_device: bool | None = None) -> None:
        """Open a cache.

        Args:
            folder: Its files.
            info: What `latents.json` says of it.
            on_device: Whether `batches` hold its content on their device; None does so on a GPU
                where it takes at most half of the free memory.
        """
        self.info = info
        self._on_device = on_device
        self._paths = sorted(folder.glob("*.arrow"))
        self._shards = list(_open_shards(folder))
        found = sum(len(shard) for shard in self._shards)
        if found != info.count:
            raise ValueError(f"{folder} holds {found} latents, latents.json says {info.count}")
        self._rows = {"moments": MappedRows(self._shards, "moments", "mirrored", info.flips)}
        if info.codebook_size is not None:
            self._rows["code_indices"] = MappedRows(
                self._shards, "code_indices", "mirrored_code_indices", info.flips
            )
        labels = [shard.column("label").to_numpy() for shard in self._shards]
        self.labels = torch.from_numpy(np.concatenate([np.empty(0, np.int32), *labels])).long()

    def __len__(self) -> int:
        return self.info.count

    @cached_property
    def names(self) -> list[str]:
        """The name of each image."""
        return [name for shard in self._shards for name in shard.column("name").to_pylist()]

    def largest(self) -> Float[Tensor, " N"]:
        """Return the largest absolute value of the latents' means of each image, mirrored or not.

        Raises:
            ValueError: one is not finite; the message names the file and the image.
        """
        shape = self.info.latent
        count = shape.channels * shape.height * shape.width
        found = np.zeros(len(self), np.float32)
        moments = self._rows["moments"]
        parts = list(moments.parts(4096))
        for number, start, rows in tqdm(parts, desc="check latents", delay=3, leave=False):
            shard, first = moments.image(number, start)
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
        rows = self._content("moments")
        return self._shaped(rows.read(rows.places(indices, mirrored)))

    def code_indices(
        self, indices: Int[Tensor, " B"], mirrored: Bool[Tensor, " B"]
    ) -> Int[Tensor, "B H W"]:
        """Read the code of each latent of some images, of the mirrored image where asked for.

        Raises:
            ValueError: the cache is that of a tokenizer without a codebook.
        """
        rows = self._content("code_indices")
        return self._shaped(rows.read(rows.places(indices, mirrored)))

    def _content(self, content: str) -> MappedRows:
        if content not in self._rows:
            raise ValueError(
                "the latent cache holds no indices: tokenizer.kind has no codebook, expected 'vq'"
            )
        return self._rows[content]

    def _shaped(self, rows: Shaped[Tensor, "B V"]) -> Tensor:
        """Return moments (B, X, H, W) or indices (B, H, W), of rows of either."""
        shape = self.info.latent
        channels = [-1] if rows.is_floating_point() else []
        return widened(rows).reshape(len(rows), *channels, shape.height, shape.width)

    @overload
    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_step: int,
        content: Literal["moments"] = ...,
        part: slice = ...,
        device: torch.device | None = ...,
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
        device: torch.device | None = ...,
    ) -> Iterator[tuple[Int[Tensor, "B H W"], Int[Tensor, " B"]]]: ...

    def batches(
        self,
        batch_size: int,
        *,
        seed: int,
        first_step: int,
        content: Literal["moments", "code_indices"] = "moments",
        part: slice = slice(None),
        device: torch.device | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Return the batches of all steps from `first_step` on, without end.

        Images and flips of a step depend on the seed and the step alone, not on the content, which
        is given with the labels: moments (B, X, H, W), or the index of each latent's code
        (B, H, W). So the step is all that a checkpoint must hold to go on within an epoch.

        A thread reads a window of several batches ahead, in the order of the files; or everything
        is on the device.

        Args:
            batch_size: Images of a whole batch.
            seed: Of the order and the flips.
            first_step: The step of the first batch.
            content: What is read.
            part: Which of a batch's samples are read and returned: a process's share.
            device: Where they are returned; by default the CPU.

        Raises:
            ValueError: indices are asked of the cache of a tokenizer without a codebook.
        """
        rows = self._content(content)  # refuse now, not at the first batch
        device = torch.device("cpu") if device is None else device
        draw = partial(self._draw, batch_size, seed, part)
        wanted = self._on_device
        if fits(rows.total_bytes, device) if wanted is None else wanted:
            batches = held(rows, self.labels, draw, first_step, device)
        else:
            batches = read_ahead(rows, self.labels, draw, first_step, device)
        return ((self._shaped(values), labels) for values, labels in batches)

    def _draw(self, batch_size: int, seed: int, part: slice, step: int) -> tuple[Tensor, Tensor]:
        """Return the images of a step's batch, and which of them are mirrored, of a part of it."""
        indices = batch_indices(len(self), batch_size, seed=seed, step=step)
        chance = torch.rand(batch_size, generator=seeds.make_rng("flips", seed, step))
        return indices[part], (chance < 0.5)[part] & torch.tensor(self.info.flips)

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
        rows = column_rows(shard, "moments")
        for start in range(0, len(rows), 4096):
            part = torch.from_numpy(rows[start : start + 4096].astype(np.float32))
            moments = part.reshape(len(part), -1, shape.height, shape.width)
            statistics.update(Posterior.of(moments, shape.channels))
    return statistics


def _open_shards(folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the shards of a cache, each compared with its seal first."""
    paths = sorted(folder.glob("*.arrow"))
    hidden = not distributed.is_main()
    for path in tqdm(
        paths, desc=f"check {folder}", unit="file", delay=3, leave=False, disable=hidden
    ):
        seal.check(path)
        yield open_arrow(path).get_batch(0)
