"""Join the stages that another machine starts, one after another, until a signal ends it.

On the first machine: MAR_NODES=4 dvc repro. On each of the others, in the same folder of a shared
file system: MAR_NODES=4 MAR_NODE=1 python -m stages.join (1 to 3; under Slurm, srun numbers them).
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from mar.files import atomic
from stages.stage import read_count


SECONDS = 1.0  # between two looks at what the first machine does


def main(seconds: float | None = None) -> None:
    """Join whatever is started.

    Args:
        seconds: How long to wait for a stage; None waits until a signal.

    Raises:
        ValueError: `MAR_NODE` is not the number of a machine but the first.
    """
    from stages import launch  # torch takes seconds

    node = read_count("MAR_NODE", int(os.environ.get("SLURM_NODEID", "0")), least=0)
    nodes = read_count("MAR_NODES", 1, least=1)
    if not 1 <= node < nodes:
        raise ValueError(
            f"MAR_NODE: must be a number from 1 to {nodes - 1} (MAR_NODES - 1; the first machine "
            f"is number 0), got {node}"
        )
    joined, since = "", time.monotonic()
    while seconds is None or time.monotonic() - since < seconds:
        call = _read(launch.NODES)
        if call is None or call["id"] == joined:
            time.sleep(SECONDS)
            continue
        if call["nodes"] != nodes:
            raise ValueError(
                f"MAR_NODES: must be {call['nodes']} as on the first machine, got {nodes}"
            )
        if not _is_alive(launch.NODES, 2 * launch.HEARTBEAT):
            continue
        joined = call["id"]
        sys.stderr.write(f"join: {call['stage']} as machine {node} of {nodes}\n")
        os.chdir(call["folder"])
        num = read_count("MAR_PROCESSES", launch.processes_by_default(), least=1)
        failure = launch.launch(call, num, node=node)
        if failure is not None and failure.message is not None:
            sys.stderr.write(failure.message)
            launch.tell_first_machine(call, failure.message)
        since = time.monotonic()


def _read(path: Path) -> dict[str, Any] | None:
    """Return what the first machine runs, if anything."""
    try:
        return atomic.read_json(path)
    except (OSError, ValueError):
        return None


def _is_alive(path: Path, seconds: float) -> bool:
    """Whether the first machine touches its file; one that has died leaves it."""
    try:
        before = path.stat().st_mtime
        time.sleep(seconds)
        return path.stat().st_mtime != before
    except OSError:
        return False


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m stages.join", description=__doc__).parse_args()
    signal.signal(signal.SIGTERM, _end)
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except ValueError as error:
        sys.stderr.write(f"join: {error}\n")
        raise SystemExit(1) from None
