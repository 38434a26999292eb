"""Count the graphs that compiled blocks need for all mask ratios, and compare their results.

    python -m benchmarks.compiled_graphs --backend aot_eager

The model is tiny. Each number of hidden tokens but one is tried, with weights other than zero,
against the same model before compilation. (With one hidden token, sizes of 1 are special.)
"""

import argparse
import json
from dataclasses import replace

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from benchmarks.training_step import Sizes, build
from mar.activation_checkpointing import set_checkpointing
from mar.model.compilation import compile_blocks
from mar.model.mar import MAR, TrainingDraws


SIZES = Sizes(
    width=24,
    blocks=2,
    heads=3,
    denoiser_blocks=2,
    denoiser_width=20,
    tokens=16,
    channels=5,
    condition_tokens=4,
    draws=2,
    batch=3,
)


def parse() -> argparse.Namespace:
    """Read what to compile with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument(
        "--dropout", action="store_true", help="train with dropout, compare nothing"
    )
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def outcome(model: MAR, num_hidden: int) -> dict[str, Tensor]:
    """Return the loss and all gradients of a batch."""
    device = next(model.parameters()).device
    rng = torch.Generator(device).manual_seed(num_hidden)
    shape = (SIZES.batch, model.latent.channels, model.latent.height, model.latent.width)
    latents = torch.randn(shape, generator=rng, device=device)
    labels = torch.arange(SIZES.batch, device=device)
    drawn = model.draw(SIZES.batch, rng)
    head = model.head.draw(SIZES.batch, num_hidden, rng)
    model.zero_grad()
    loss = model(latents, labels, TrainingDraws(drawn.orders, num_hidden, drawn.dropped, head))
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **{name: grad.clone() for name, grad in gradients.items()}}


def main() -> None:
    """Compile, count, compare."""
    arguments = parse()
    model = build(replace(SIZES, dropout=0.1 if arguments.dropout else 0.0)).to(arguments.device)
    rng = torch.Generator(arguments.device).manual_seed(0)
    model.initialize(rng)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=rng, device=parameter.device)
            parameter.add_(noise, alpha=0.1)
    counts = list(range(SIZES.tokens, 1, -1))
    names = list(model.state_dict())
    expected = [outcome(model.train(), num_hidden) for num_hidden in counts]
    set_checkpointing(model, arguments.checkpointing)
    backend = CompileCounterWithBackend(arguments.backend)
    compile_blocks(model, backend)
    graphs: list[int] = []
    largest = 0.0
    for num_hidden, wanted in zip(counts, expected, strict=True):
        found = outcome(model, num_hidden)
        assert found.keys() == wanted.keys()
        graphs.append(backend.frame_count)
        largest = max([largest, *(float((found[n] - wanted[n]).abs().max()) for n in wanted)])
    print(
        json.dumps(
            {
                "graphs": graphs,
                "largest difference": None if arguments.dropout else largest,
                "names kept": names == list(model.state_dict()),
            }
        )
    )


if __name__ == "__main__":
    main()
