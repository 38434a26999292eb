"""The denoiser in the steps of sampling: what does not depend on x_t is computed once for all.

The result is that of `Denoiser.denoise`, up to rounding.

Shapes: R rows (tokens), G rows, or twice as many with guidance, S sampling steps, F features of a
time, C channels of a token, O outputs, W width of the MLP, X some number of rows of weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, silu

from mar.heads.base import Condition
from mar.heads.denoiser import Denoiser, FinalLayer, ResidualBlock
from mar.linear import affine


class Denoising:
    """The denoiser of some tokens, under a condition of theirs, at some times."""

    def __init__(
        self,
        denoiser: Denoiser,
        condition: Condition,
        features: Float[Tensor, "S F"],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Embed condition and times, and combine weights.

        Args:
            denoiser: The network.
            condition: z of each token, and the guidance.
            features: `time_features` of the times.
            dtype: Of the products in the residual blocks, which are nearly all of the work. What
                enters and leaves them is float32, as are the sum that they add to and the last
                layer.
        """
        self.denoiser = denoiser
        self.condition = condition
        self.z = denoiser.embed_condition(condition)  # (G, W)
        self.times = denoiser.time_mlp(features)  # (S, W)
        self.dtype = dtype
        self.blocks = [
            _SteppedBlock(block, dtype)
            for block in denoiser.blocks
            if isinstance(block, ResidualBlock)
        ]
        self.final = _final_modulation(denoiser.final)

    def __call__(self, x_t: Float[Tensor, "R C"], time: int) -> Float[Tensor, "G O"]:
        """Return the outputs at the time of this index, with class and below, without."""
        rows = x_t if self.condition.z_null is None else torch.cat([x_t, x_t])
        y = silu(self.z + self.times[time])
        x = self.denoiser.input_proj(rows)  # (G, W)
        modulating = y.to(self.dtype)
        for block in self.blocks:
            x = block(x, modulating)
        final = self.denoiser.final
        modulated = affine(y, *self.final)
        scale, shift = modulated.tensor_split([x.shape[1]], dim=1)
        return torch.addmm(shift, final.norm(x) * scale, final.linear.weight.mT)

    def guided(
        self, x_t: Float[Tensor, "R C"], time: int
    ) -> tuple[Float[Tensor, "R C"], Float[Tensor, "R X"]]:
        """Return the guided outputs, as many as channels, and the others, as with class."""
        given, *null = self(x_t, time).chunk(1 if self.condition.z_null is None else 2)
        prediction, others = given.tensor_split([x_t.shape[1]], dim=1)
        if null:
            unguided = null[0][:, : x_t.shape[1]]
            prediction = torch.lerp(unguided, prediction, self.condition.scale)
        return prediction, others


class _SteppedBlock:
    """A residual block whose scale stands for 1 + scale: the bias adds the 1, not each row."""

    def __init__(self, block: ResidualBlock, dtype: torch.dtype) -> None:
        self.norm = block.norm
        weight, bias = block.modulation[1].parameters()
        width = len(bias) // 3
        ones = pad(bias.new_ones(width), (width, width))
        self.modulation = weight.to(dtype), (bias + ones).to(dtype)
        inner, self.activation, outer = block.mlp
        self.inner, self.outer = (
            tuple(parameter.to(dtype) for parameter in layer.parameters())
            for layer in (inner, outer)
        )

    def __call__(self, x: Float[Tensor, "G W"], y: Float[Tensor, "G W"]) -> Float[Tensor, "G W"]:
        """Apply the block under the condition, of which y is the SiLU; x is float32."""
        shift, scale, gate = affine(y, *self.modulation).to(x.dtype).chunk(3, dim=1)
        hidden = torch.addcmul(shift, self.norm(x), scale).to(y.dtype)
        hidden = self.activation(affine(hidden, *self.inner))
        return torch.addcmul(x, gate, affine(hidden, *self.outer).to(x.dtype))


def _final_modulation(final: FinalLayer) -> tuple[Float[Tensor, "X W"], Float[Tensor, " X"]]:
    """Return weight and bias of 1 + scale, and of the shift after the last projection.

    A projected shift has as many elements as outputs, few beside the width.
    """
    weight, bias = final.modulation[1].parameters()
    (to_shift, to_scale), (shift, scale) = weight.chunk(2), bias.chunk(2)
    projected = torch.cat([to_scale, final.linear.weight @ to_shift])
    return projected, torch.cat([1 + scale, final.linear(shift)])
