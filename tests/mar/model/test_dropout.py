"""The CPU's dropout drops the share that it should, and its attention is attention."""

import torch
from timm.models import vision_transformer
from torch import Tensor

from mar.model.block import Block
from mar.model.dropout import Dropout, draw_masks, masked_attention
from mar.model.transformer import blocks


def test_masks_drop_the_share_and_keep_the_mean() -> None:
    torch.manual_seed(0)
    small, large = draw_masks(0.1, [(3, 5), (1000, 1000)], torch.empty(0))
    assert small.shape == (3, 5)
    assert large.unique().tolist() == [0.0, large.max().item()]
    dropped = float((large == 0).double().mean())
    assert abs(dropped - 0.1) < 5 * (0.1 * 0.9 / 1e6) ** 0.5
    assert abs(float(large.double().mean()) - 1) < 5 * (0.1 / 0.9 / 1e6) ** 0.5
    # Four neighbours share a random number; the bits of each are its own.
    quads = (large == 0).view(-1, 4).double()
    assert (torch.corrcoef(quads.T) - torch.eye(4)).abs().max() < 5 / len(quads) ** 0.5


def test_masked_attention_and_sum_have_the_gradients_of_their_formulas(
    rng: torch.Generator,
) -> None:
    q, k, v = (torch.randn(2, n, 3, generator=rng, dtype=torch.float64) for n in (4, 5, 5))
    mask = draw_masks(0.3, [(2, 4, 5)], q)[0]
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return masked_attention(q, k, v, mask)

    plain = ((q @ k.transpose(1, 2) / 3**0.5).softmax(dim=2) * mask) @ v
    assert torch.allclose(attend(q, k, v), plain)
    assert torch.autograd.gradcheck(attend, inputs)

    factors = draw_masks(0.3, [(2, 4, 3)], q)[0]
    rest = torch.randn(2, 4, 3, generator=rng, dtype=torch.float64).requires_grad_()
    assert torch.allclose(Dropout(0.3, [factors]).add(rest, q), rest + q * factors)
    assert torch.autograd.gradcheck(lambda a, b: Dropout(0.3, [factors]).add(a, b), (rest, q))


def test_a_block_is_timms_and_gives_the_chosen_places(rng: torch.Generator) -> None:
    (block,) = blocks(16, 1, 2, 0.1).eval()
    assert isinstance(block, Block)
    x = torch.randn(2, 7, 16, generator=rng)
    chosen = torch.tensor([[5, 0, 2], [1, 6, 3]])
    whole = vision_transformer.Block.forward(block, x)
    assert torch.allclose(block(x), whole, atol=1e-5)
    rows = torch.stack([whole[0, chosen[0]], whole[1, chosen[1]]])
    assert torch.allclose(block(x, chosen), rows, atol=1e-5)
