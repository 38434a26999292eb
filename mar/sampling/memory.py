"""How much memory a generation takes, counted on copies of the networks that hold no numbers.

Shapes: B batch, N tokens of an image, C channels of a token.
"""

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mar.heads.annealing import AnnealedSampler
from mar.model import masking
from mar.model.mar import MAR
from mar.sampling.config import SampleConfig
from mar.sampling.generate import Drawing
from mar.sampling.halves import hidden_counts
from mar.sampling.noise import SamplingNoise
from mar.tokenizers.codec import decode_tokens
from mar.tokenizers.interface import Tokenizer


M = TypeVar("M", bound=nn.Module)
META = torch.device("meta")
COUNTED = 8  # images: of fewer, what grows with their number may not be at the peak
FEW = 3  # steps of a head, at whose peak any number of them takes the same


@dataclass(frozen=True)
class Memory:
    """Bytes that a generation takes besides its weights.

    Attributes:
        shared: Whatever the batch.
        generated: For each image of a batch.
        decoded: For each image that is decoded at the same time.
    """

    shared: int
    generated: int
    decoded: int

    def most_images(self, free: int, decoded_at_a_time: int) -> int:
        """Return the largest batch B, at least 1, that fits beside the decoding of another.

        The largest with shared + B generated + min(B, decoded_at_a_time) decoded <= free.
        """
        left = free - self.shared
        images = left // (self.generated + self.decoded)
        if images >= decoded_at_a_time:
            images = (left - decoded_at_a_time * self.decoded) // self.generated
        return max(1, images)


@torch.no_grad()
def count_memory(model: MAR, tokenizer: Tokenizer, config: SampleConfig) -> Memory:
    """Count what a generation takes at its peak, in the step that draws most tokens.

    In float32, without what libraries take for themselves; where attention is computed in blocks,
    or autocast halves numbers, it takes less.
    """
    twin, decoder = without_numbers(model), without_numbers(tokenizer)
    some, more = (_peak(twin, config, batch) for batch in (COUNTED, 2 * COUNTED))
    dtype = torch.int64 if model.config.is_discrete else torch.float32
    tokens = torch.empty(1, model.num_tokens, model.channels, dtype=dtype, device=META)
    with PeakMemory() as decoding:
        decode_tokens(decoder, twin.unpatchify(tokens), 1.0)
    return Memory(max(0, 2 * some - more), (more - some) // COUNTED, decoding.most)


def without_numbers(module: M) -> M:
    """Return a copy whose weights are of the meta device; the weights are not copied first."""
    memo: dict[int, Tensor] = {id(tensor): tensor.to(META) for tensor in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to(META), requires_grad=False)
    return copy.deepcopy(module, memo)


def _peak(twin: MAR, config: SampleConfig, batch: int) -> int:
    """Return the bytes at the peak of the step that draws most tokens, of a batch."""
    num_tokens = twin.num_tokens
    first = (num_tokens + 1) // 2  # of a checkerboard
    left = hidden_counts(
        config.num_steps, config.reconstruction_steps, first, num_tokens - first
    )  # after each step
    hidden = [num_tokens, *left[:-1]]  # before it
    step = max(range(len(left)), key=lambda index: hidden[index] - left[index])
    later = config.num_steps - 1 if config.order == "confidence" else 0
    if later:
        step = 0  # which draws all of them
    sampler = config.head.at_step(step, len(left))
    short = sampler
    if isinstance(sampler, AnnealedSampler):  # a third step of the head takes what a second does
        short = sampler.model_copy(update={"num_steps": min(FEW, sampler.num_steps)})
    with PeakMemory() as memory:
        noise = _noise(twin, batch, config.head.num_noises, later)
        tokens = torch.zeros_like(noise.initial)
        if twin.config.is_discrete:
            tokens = tokens.long()
        given = twin.transformer.condition.nothing(batch)
        draw = Drawing(twin, given, noise.orders, noise, config, [short] * len(left), cached=True)
        visible = noise.orders[:, hidden[step] :]
        if later:
            draw.surest_last(tokens, visible, noise.orders, 1.0, step)
        else:
            drawn = noise.orders[:, left[step] : hidden[step]]
            of_all_steps = noise.at(drawn, step, sampler.num_noises)
            values = draw(tokens, visible, drawn, 1.0, step)
            tokens.scatter(1, masking.expand_index(drawn, twin.channels), values)
            del of_all_steps  # which the head holds to its end
    return memory.most


def _noise(twin: MAR, batch: int, num_noises: int, later: int) -> SamplingNoise:
    size = (batch, twin.num_tokens, twin.channels)
    return SamplingNoise(
        torch.zeros(batch, twin.num_tokens, dtype=torch.int64, device=META),
        torch.zeros(size, device=META),
        torch.zeros(num_noises, *size, device=META),
        torch.zeros(later, *size, device=META) if later else None,
    )


class PeakMemory(TorchDispatchMode):
    """Counts what tensors that are made within it hold together, in bytes.

    Attributes:
        most: The most that they held at any time.
    """

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.most = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Execute an operation, and count what it makes."""
        result = func(*args, **(kwargs or {}))
        given = {_storage(tensor)._cdata for tensor in _tensors((args, kwargs))}
        for storage in map(_storage, _tensors(result)):
            if storage._cdata not in given:  # else a view, or made in place
                self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> Any:
    return tensor.untyped_storage()
