"""Time the causal transformer's conditions of one generation, with the key/value cache and without.

Both give z of every token, one after the other, for the same inputs in the same run; without the
cache, a call computes the places so far again, and none beyond. No token is drawn in between: the
heads cost the same either way.

    OMP_NUM_THREADS=1 python -m benchmarks.key_value_cache
"""

import argparse
import sys
import time

import torch
from torch import Tensor

from mar.model.causal import CausalTransformer
from mar.model.masking import gather_tokens, sample_orders
from mar.model.transformer import Widths


CHANNELS = 16
WARM_UP = 8  # calls before the clock starts


def parse() -> argparse.Namespace:
    """Read the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=8, help="blocks of the stack, even")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of an image")
    parser.add_argument("--condition-tokens", type=int, default=64)
    parser.add_argument("--least", type=float, default=10.0, help="ratio below which this fails")
    return parser.parse_args()


def build(sizes: argparse.Namespace, rng: torch.Generator) -> CausalTransformer:
    """Return a transformer for random orders, with fresh weights."""
    half = sizes.blocks // 2
    widths = Widths(
        encoder_width=sizes.width,
        encoder_blocks=half,
        encoder_heads=sizes.heads,
        decoder_width=sizes.width,
        decoder_blocks=sizes.blocks - half,
        decoder_heads=sizes.heads,
    )
    transformer = CausalTransformer(
        widths,
        channels=CHANNELS,
        num_tokens=sizes.tokens,
        num_classes=10,
        condition_tokens=sizes.condition_tokens,
        dropout=0.1,
        next_position=True,
    )
    transformer.initialize(rng)
    return transformer.eval()


def run(
    transformer: CausalTransformer,
    tokens: Tensor,
    sequence: Tensor,
    condition: Tensor,
    *,
    cached: bool,
    calls: int,
) -> tuple[Tensor, float]:
    """Return z in the order of the sequence, and the seconds of all calls."""
    predict = transformer.predictor(condition, sequence, cached=cached)
    z: list[Tensor] = []
    start = time.perf_counter()
    for place in range(calls):
        z.append(predict(tokens, sequence[:, :place], sequence[:, place : place + 1]))
    return torch.cat(z, dim=1), time.perf_counter() - start


def main() -> None:
    """Time both, and fail where they differ or the cache gains too little."""
    sizes = parse()
    rng = torch.Generator().manual_seed(0)
    transformer = build(sizes, rng)
    tokens = torch.randn(sizes.batch, sizes.tokens, CHANNELS, generator=rng)
    sequence = sample_orders(sizes.batch, sizes.tokens, rng)
    labels = torch.arange(sizes.batch) % 10
    condition = transformer.condition(labels, labels < 0).detach()

    found: dict[bool, Tensor] = {}
    seconds: dict[bool, float] = {}
    inputs = (transformer, tokens, sequence, condition)
    for cached in (True, False):
        run(*inputs, cached=cached, calls=min(WARM_UP, sizes.tokens))
        found[cached], seconds[cached] = run(*inputs, cached=cached, calls=sizes.tokens)
    z = gather_tokens(transformer(tokens, sequence, condition).detach(), sequence)

    ratio = seconds[False] / seconds[True]
    print(f"{vars(sizes)}, {torch.get_num_threads()} threads")
    print(f"cached    {seconds[True]:8.2f} s")
    print(f"uncached  {seconds[False]:8.2f} s")
    print(f"ratio     {ratio:8.1f}")
    for cached, name in ((True, "cached"), (False, "uncached")):
        difference = float((found[cached] - z).norm() / z.norm())
        print(f"{name} to the forward pass: relative difference {difference:.1e}")
        if not difference < 1e-5:
            sys.exit(f"{name} differs from the forward pass")
    if ratio < sizes.least:
        sys.exit(f"the cache must be {sizes.least} times as fast, got {ratio:.1f}")


if __name__ == "__main__":
    main()
