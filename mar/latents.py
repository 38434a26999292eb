"""The latent cache: moments of all training images, in a few memory-mapped Arrow files.

Shapes: B batch, X twice the latent channels (means, then log variances), c channels of a latent, H
W latent grid, N rows of a shard, V values of a row (X H W).
"""
# pyarrow has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypedDict

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from mar import atomic, seeds
from mar.batches import batch_indices
from mar.config import Config
from mar.posterior import LatentShape, Posterior


TRANSFORM = "ADM centre crop to {size} px"  # what `mar.images` does, as a cache tells it


class LatentsConfig(Config):
    """Section `latents` of `params.yaml`: how images are cached as latents."""

    dtype: Literal["float16", "float32"] = Field(description="number type of the cached moments")
    flips: bool = Field(description="cache the mirrored image as well, to train with random flips")
    shard_images: int = Field(gt=0, description="images in a file of the cache")
    batch_size: int = Field(gt=0, description="images encoded at a time")


class LatentsInfo(Config):
    """What `latents.json` says of a cache; the one source of the latents' scale."""

    tokenizer: str = Field(description="SHA-256 of the tokenizer's weights")
    transform: str = Field(description="what was done to the images")
    dtype: str = Field(description="number type of the moments")
    flips: bool = Field(description="whether mirrored images are in the cache")
    count: int = Field(description="images")
    num_classes: int = Field(description="classes of the data")
    shape: list[int] = Field(description="channels, height and width of a latent")
    mean: float = Field(description="mean of all latents, of the sampled posterior")
    std: float = Field(description="their standard deviation; latents are divided by it")
    channel_mean: list[float] = Field(description="mean of each channel")
    channel_std: list[float] = Field(description="standard deviation of each channel")

    @property
    def latent(self) -> LatentShape:
        """Return the shape of one image's latents."""
        channels, height, width = self.shape
        return LatentShape(channels, height, width)

    @classmethod
    def read(cls, path: Path) -> "LatentsInfo":
        """Read `latents.json`.

        Raises:
            ValueError: the file is damaged, or is another.
        """
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ValueError(f"{path} does not describe a latent cache: {error}") from None

    def check(self, expected: Mapping[str, object]) -> None:
        """Refuse a cache that was not made as expected.

        Raises:
            ValueError: the message names what differs, what was found and what was expected.
        """
        differing = [
            f"{name} is {getattr(self, name)!r}, expected {value!r}"
            for name, value in expected.items()
            if getattr(self, name) != value
        ]
        if differing:
            raise ValueError("the latent cache does not fit: " + "; ".join(differing))


class Scale(TypedDict):
    """What `measure` finds; the fields of `LatentsInfo` of the same names."""

    count: int
    mean: float
    std: float
    channel_mean: list[float]
    channel_std: list[float]


def write_shard(
    path: Path,
    moments: Float[Tensor, "B X H W"],
    mirrored: Float[Tensor, "B X H W"] | None,
    *,
    labels: Int[Tensor, " B"],
    names: Sequence[str],
    dtype: str,
) -> None:
    """Write the moments of some images as one Arrow file of one record batch.

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
    batch = pa.record_batch(columns)
    with atomic.replacing(path) as partial, pa.ipc.new_file(str(partial), batch.schema) as writer:
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


class LatentCache:
    """A cache opened for reading; its files stay on the disk and are mapped into memory."""

    def __init__(self, folder: Path, info: LatentsInfo) -> None:
        self.info = info
        shards = [_open_shard(path) for path in sorted(folder.glob("*.arrow"))]
        self._moments = [_rows(shard, "moments") for shard in shards]
        self._mirrored = [_rows(shard, "mirrored") for shard in shards if info.flips]
        self._starts = np.cumsum([0, *(len(rows) for rows in self._moments)])
        if self._starts[-1] != info.count:
            raise ValueError(
                f"{folder} holds {self._starts[-1]} latents, latents.json says {info.count}"
            )
        labels = [shard.column("label").to_numpy() for shard in shards]
        self.labels = torch.from_numpy(np.concatenate(labels)).long()
        self.names: list[str] = []
        for shard in shards:
            self.names += shard.column("name").to_pylist()

    def __len__(self) -> int:
        return self.info.count

    def moments(
        self, indices: Int[Tensor, " B"], mirrored: Bool[Tensor, " B"]
    ) -> Float[Tensor, "B X H W"]:
        """Read the moments of some images, of the mirrored image where asked for."""
        channels, height, width = self.info.shape
        rows = [self._row(int(i), bool(m)) for i, m in zip(indices, mirrored, strict=True)]
        values = torch.from_numpy(np.stack(rows)).float()
        return values.reshape(-1, 2 * channels, height, width)

    def _row(self, index: int, mirrored: bool) -> Float[np.ndarray, " V"]:
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        source = self._mirrored if mirrored else self._moments
        return source[shard][index - self._starts[shard]]

    def batches(
        self, batch_size: int, *, seed: int, first_step: int
    ) -> Iterator[tuple[Float[Tensor, "B X H W"], Int[Tensor, " B"]]]:
        """Yield the batches of all steps from `first_step` on, without end, reading one ahead."""

        def read(step: int) -> tuple[Tensor, Tensor]:
            indices = batch_indices(len(self), batch_size, seed=seed, step=step)
            chance = torch.rand(batch_size, generator=seeds.generator("flips", seed, step))
            mirrored = (chance < 0.5) & torch.tensor(self.info.flips)
            return self.moments(indices, mirrored), self.labels[indices]

        with ThreadPoolExecutor(1) as reader:
            step, ahead = first_step, reader.submit(read, first_step)
            while True:
                batch = ahead.result()
                step += 1
                ahead = reader.submit(read, step)
                yield batch

    def normalise(
        self, moments: Float[Tensor, "B X H W"], generator: torch.Generator
    ) -> Float[Tensor, "B c H W"]:
        """Sample the posterior and divide by the latents' std; the mean is left in (MAR's code)."""
        posterior = Posterior.of(moments)
        eps = torch.randn(posterior.mean.shape, generator=generator, device=generator.device)
        return posterior.sample(eps) / self.info.std


def measure(folder: Path, shape: LatentShape) -> Scale:
    """Return count, mean and std of all cached latents, over all and by channel, in float64.

    They are those of the sampled posterior: its variance counts as well as that of its mean.
    """
    count = 0
    total = torch.zeros(2, shape.channels, dtype=torch.float64)  # sums of z and of z^2
    for path in sorted(folder.glob("*.arrow")):
        rows = np.asarray(_rows(_open_shard(path), "moments"))
        for start in range(0, len(rows), 4096):
            part = torch.from_numpy(rows[start : start + 4096].astype(np.float32))
            moments = part.reshape(-1, 2 * shape.channels, shape.height, shape.width)
            posterior = Posterior.of(moments)
            mean, variance = posterior.mean.double(), posterior.log_variance.double().exp()
            total[0] += mean.sum(dim=(0, 2, 3))
            total[1] += (mean.square() + variance).sum(dim=(0, 2, 3))
            count += len(part)
    first, second = total / (count * shape.height * shape.width)
    return {
        "count": count,
        "mean": float(first.mean()),
        "std": float((second.mean() - first.mean().square()).sqrt()),
        "channel_mean": first.tolist(),
        "channel_std": (second - first.square()).sqrt().tolist(),
    }


def _open_shard(path: Path) -> pa.RecordBatch:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Arrow file: {error}") from None


def _rows(shard: pa.RecordBatch, column: str) -> Float[np.ndarray, "N V"]:
    """Return a column of fixed-size lists as a matrix, without copying it."""
    values = shard.column(column)
    return values.flatten().to_numpy(zero_copy_only=True).reshape(len(values), -1)
