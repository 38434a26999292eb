"""Open a page to play with a generator: `python -m stages.page`, then the address that it shows.

The page draws with the weights in `out/` or with released ones, as `stages.generate` does, and it
draws painted parts of images again. It asks no other machine for anything. docs/page.md shows it.
"""

import argparse
import ipaddress
import socket
import sys
from collections.abc import Sequence

import torch
import uvicorn

from stages.generate_options import add_weights, check_weights, describe_weights
from stages.page_app import make_app
from stages.sampler import Sampler, load


GRACE = 2  # seconds that requests under way have when the program is interrupted


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, load the weights, and serve until interrupted."""
    options = parse(arguments)
    try:
        with listen(options.host, options.port) as listening:  # before seconds of loading
            say(f"reading {describe_weights(options)}")
            sampler = load(generator=options.weights, tokenizer=options.tokenizer, ema=options.ema)
            serve(sampler, options.host, listening)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        sys.stderr.write(f"page: {error}\n")
        raise SystemExit(1) from None


def serve(sampler: Sampler, host: str, listening: socket.socket) -> None:
    """Serve the page until the program is interrupted."""
    for remark in sampler.weights.remarks:
        say(remark)
    private = is_loopback(host)
    if not private:
        say(f"whoever reaches {host or 'this machine'} can use the page, as it has no password")
    name, port = (
        "localhost" if private else host or socket.gethostname(),
        listening.getsockname()[1],
    )
    sys.stdout.write(f"http://{name}:{port} shows the page; Ctrl-C ends it\n")
    sys.stdout.flush()
    app = make_app(sampler, only_loopback=private)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
    uvicorn.Server(config).run(sockets=[listening])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.page",
        description="Serve a page on which to generate and edit images with the weights in out/, "
        "or with released ones.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="the address to listen at (default: 127.0.0.1, which "
        "other machines cannot reach)")  # fmt: skip
    add("--port", type=_port, default=7860, help="0 is any free one (default: 7860)")
    add_weights(parser)
    options = parser.parse_args(arguments)
    check_weights(parser, options)
    return options


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ValueError: the address cannot be used, or another program has it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (")[0]  # what follows repeats the address
        raise ValueError(
            f"cannot listen at {host}, port {port}: {reason}; choose others by --host and --port"
        ) from None


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def say(text: str) -> None:
    """Tell the person at the terminal; what is on stdout is the result."""
    sys.stderr.write(f"page: {text}\n")
    sys.stderr.flush()


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


if __name__ == "__main__":
    main()
