"""Linear layers, which a CPU computes as convolutions of 1 x 1.

torch multiplies float32 matrices on a CPU by MKL, which takes its AVX2 kernels on AMD's processors,
and convolves by oneDNN, which uses all that a processor has. On an EPYC with AVX-512 a convolution
is twice as fast, forward and backward, and in the backward pass it is one operation for the
gradients of input, weight and bias.

Shapes: I inputs, O outputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


# Where convolutions are faster, forward and backward: multiplications, and both sides of a weight.
ENOUGH_WORK = 2**25
WIDE_ENOUGH = 64
IMAGES = 16  # from 16 images on, torch takes oneDNN with a single thread too


class Linear(nn.Linear):
    """torch's linear layer, through `linear`."""

    def forward(self, input: Float[Tensor, "*R I"]) -> Float[Tensor, "*R O"]:
        """Return input weight^T + bias."""
        return linear(input, self)


def linear(x: Float[Tensor, "*R I"], layer: nn.Linear | nn.Conv2d) -> Float[Tensor, "*R O"]:
    """Apply a linear layer (timm declares those of an MLP as one or the other)."""
    assert isinstance(layer, nn.Linear)
    return affine(x, layer.weight, layer.bias)


def affine(
    x: Float[Tensor, "*R I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> Float[Tensor, "*R O"]:
    """Return x weight^T + bias."""
    images = _images(x, weight)
    if not images:
        return functional.linear(x, weight, bias)
    # Rows as the pixels of images, the channels of each side by side (channels_last).
    pixels = x.reshape(images, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (images, I, rows, 1)
    y = functional.conv2d(pixels, weight[:, :, None, None], bias)  # (images, O, rows, 1)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], weight.shape[0])


def _images(x: Tensor, weight: Tensor) -> int:
    """Return among how many images to divide the rows; 0 for a matrix product."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    if not on_cpu or torch.compiler.is_compiling() or min(weight.shape) < WIDE_ENOUGH:
        return 0
    if x.numel() * weight.shape[0] < ENOUGH_WORK:
        return 0
    if x.numel() // x.shape[-1] % IMAGES == 0:
        return IMAGES
    return 1 if torch.get_num_threads() > 1 else 0
