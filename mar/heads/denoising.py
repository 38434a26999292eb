"""The denoiser in the steps of sampling: what does not depend on x_t is computed once for all.

The result is that of `Denoiser.denoise`, up to rounding. One evaluation is a function of tensors
alone, so that one graph of `torch.compile` serves all denoising and generation steps: the time is a
row of a table, and the guidance scale a tensor. A number of Python in its place would be a constant
of the graph, and each another graph.

Shapes: R rows (tokens), G rows, or twice as many with guidance, S sampling steps, C channels of a
token, O outputs, W width of the MLP, X some number of rows of weights.
"""

from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad, silu

from mar.heads.base import Condition
from mar.heads.denoiser import Denoiser, FinalLayer, ResidualBlock
from mar.linear import affine


EPS = 1e-6  # of the layer norms
Layer = tuple[Tensor, Tensor]  # weight and bias


class BlockWeights(NamedTuple):
    """Those of a residual block, whose scale stands for 1 + scale: the bias adds the 1."""

    norm: Layer
    modulation: Layer
    inner: Layer
    outer: Layer


class Weights(NamedTuple):
    """Those of an evaluation; of the final layer's modulation, `_final_modulation` says how."""

    input: Layer
    blocks: tuple[BlockWeights, ...]
    modulation: Layer
    norm: nn.Module  # of the final layer, which has no weights
    output: Tensor


def evaluate(
    weights: Weights,
    x_t: Float[Tensor, "R C"],
    z: Float[Tensor, "G W"],
    time: Float[Tensor, " W"],
    scale: Float[Tensor, ""] | float | None,
) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R X"]]:
    """Return the guided outputs, as many as channels, and the others, as with class.

    Args:
        weights: In the blocks of the type of their products; all else is float32.
        x_t: Noisy tokens.
        z: Their embedded conditions and below, with guidance, those without class.
        time: An embedded time.
        scale: Of guidance; None for none.
    """
    rows = x_t if scale is None else torch.cat([x_t, x_t])
    y = silu(z + time)
    x = affine(rows, *weights.input)  # (G, W)
    modulating = y.to(weights.blocks[0].inner[0].dtype) if weights.blocks else y
    for block in weights.blocks:
        x = _apply_block(block, x, modulating)
    of_scale, shift = affine(y, *weights.modulation).tensor_split([x.shape[1]], dim=1)
    outputs = torch.addmm(shift, weights.norm(x) * of_scale, weights.output.mT)  # (G, O)
    if scale is None:
        prediction, others = outputs.tensor_split([x_t.shape[1]], dim=1)
        return prediction, others
    given, null = outputs.chunk(2)
    prediction, others = given.tensor_split([x_t.shape[1]], dim=1)
    return torch.lerp(null[:, : x_t.shape[1]], prediction, scale), others


def _apply_block(
    block: BlockWeights, x: Float[Tensor, "G W"], y: Float[Tensor, "G W"]
) -> Float[Tensor, "G W"]:
    """Apply a block under the condition, of which y is the SiLU; x is float32."""
    shift, scale, gate = affine(y, *block.modulation).to(x.dtype).chunk(3, dim=1)
    normed = layer_norm(x, x.shape[1:], *block.norm, EPS)
    hidden = torch.addcmul(shift, normed, scale).to(y.dtype)
    hidden = silu(affine(hidden, *block.inner))
    return torch.addcmul(x, gate, affine(hidden, *block.outer).to(x.dtype))


class Denoising:
    """The denoiser of some tokens, under a condition of theirs, at some times."""

    def __init__(
        self,
        denoiser: Denoiser,
        condition: Condition,
        times: Float[Tensor, "S W"],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Embed the condition, and combine weights.

        Args:
            denoiser: The network.
            condition: z of each token, and the guidance.
            times: As the network embeds them.
            dtype: Of the products in the residual blocks, which are nearly all of the work. What
                enters and leaves them is float32, as are the sum that they add to and the last
                layer.
        """
        self.z = denoiser.embed_condition(condition)  # (G, W)
        self.times = times
        self.scale: Tensor | float | None = None if condition.z_null is None else condition.scale
        compiled = _COMPILED.get(denoiser)
        if compiled is None:
            self.evaluate, self.weights = evaluate, combine_weights(denoiser, dtype)
            return
        self.evaluate, self.weights = compiled, compiled.weights(denoiser, dtype)
        if self.scale is not None:
            self.scale = self.z.new_full((), self.scale)

    def __call__(
        self, x_t: Float[Tensor, "R C"], time: int
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R X"]]:
        """Return the guided outputs, as many as channels, and the others, as with class.

        Args:
            x_t: Noisy tokens.
            time: The index of the time.
        """
        return self.evaluate(self.weights, x_t, self.z, self.times[time], self.scale)


class CompiledEvaluation:
    """`evaluate`, compiled; on a GPU it is captured as a CUDA graph for each number of rows."""

    def __init__(self, backend: str | Callable[..., object], mode: str | None) -> None:
        compiled = torch.compile(  # pyright: ignore[reportUnknownMemberType]
            evaluate, fullgraph=True, dynamic=True, backend=backend, mode=mode
        )
        self._compiled: Callable[..., tuple[Tensor, Tensor]] = compiled
        self._weights: dict[torch.dtype, Weights] = {}

    def weights(self, denoiser: Denoiser, dtype: torch.dtype) -> Weights:
        """Return the weights, always the same tensors: a captured graph reads them in place."""
        if dtype not in self._weights:
            self._weights[dtype] = _as_parameters(combine_weights(denoiser, dtype))
        return self._weights[dtype]

    def __call__(
        self, weights: Weights, x_t: Tensor, z: Tensor, time: Tensor, scale: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        """Return what `evaluate` does."""
        torch.compiler.cudagraph_mark_step_begin()
        # Of a view, the whole and the place in it would be numbers of the graph too.
        whole = [tensor.clone() if tensor._is_view() else tensor for tensor in (x_t, z, time)]
        prediction, others = self._compiled(weights, *whole, scale)
        return prediction.clone(), others.clone()  # a graph's outputs are those of its next run too


_COMPILED: WeakKeyDictionary[nn.Module, CompiledEvaluation] = WeakKeyDictionary()


def compile_denoising(
    denoiser: Denoiser, backend: str | Callable[..., object] = "inductor", mode: str | None = None
) -> None:
    """Compile the evaluation of a denoiser in sampling, whose weights do not change any more.

    Args:
        denoiser: The network; a copy of it is not compiled.
        backend: Of `torch.compile`.
        mode: Of `torch.compile`; `reduce-overhead` captures CUDA graphs.
    """
    _COMPILED[denoiser] = CompiledEvaluation(backend, mode)


def combine_weights(denoiser: Denoiser, dtype: torch.dtype) -> Weights:
    """Return the weights of `evaluate`, those of the blocks in a type of their own."""
    blocks = [block for block in denoiser.blocks if isinstance(block, ResidualBlock)]
    return Weights(
        _layer(denoiser.input_proj),
        tuple(_block_weights(block, dtype) for block in blocks),
        _final_modulation(denoiser.final),
        denoiser.final.norm,
        denoiser.final.linear.weight,
    )


def _block_weights(block: ResidualBlock, dtype: torch.dtype) -> BlockWeights:
    weight, bias = block.modulation[1].parameters()
    width = len(bias) // 3
    ones = pad(bias.new_ones(width), (width, width))
    inner, _, outer = block.mlp
    return BlockWeights(
        _layer(block.norm),
        (weight.to(dtype), (bias + ones).to(dtype)),
        _layer(inner, dtype),
        _layer(outer, dtype),
    )


def _layer(module: nn.Module, dtype: torch.dtype | None = None) -> Layer:
    weight, bias = module.parameters()
    return weight.to(dtype=dtype), bias.to(dtype=dtype)


def _final_modulation(final: FinalLayer) -> Layer:
    """Return weight and bias of 1 + scale, and of the shift after the last projection.

    A projected shift has as many elements as outputs, few beside the width.
    """
    weight, bias = final.modulation[1].parameters()
    (to_shift, to_scale), (shift, scale) = weight.chunk(2), bias.chunk(2)
    projected = torch.cat([to_scale, final.linear.weight @ to_shift])
    return projected, torch.cat([1 + scale, final.linear(shift)])


def _as_parameters(weights: Weights) -> Weights:
    """Return weights of which `torch.compile` knows that neither their sizes change nor they."""

    def fixed(tensor: Tensor) -> Tensor:
        parameter = nn.Parameter(tensor.detach(), requires_grad=False)
        torch._dynamo.mark_static_address(parameter)  # pyright: ignore[reportPrivateUsage]
        return parameter

    def layer(pair: Layer) -> Layer:
        return fixed(pair[0]), fixed(pair[1])

    return Weights(
        layer(weights.input),
        tuple(BlockWeights(*map(layer, block)) for block in weights.blocks),
        layer(weights.modulation),
        weights.norm,
        fixed(weights.output),
    )
