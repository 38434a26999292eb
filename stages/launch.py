"""Start a stage in several processes, or join those that something else has started.

Loaded by name, like `stages.runner`: how many processes there are changes no result.

A stage that is started plainly starts one process for each GPU of its machine (`MAR_PROCESSES`
says otherwise), and of several machines (`MAR_NODES`, see `stages.join`). Under torchrun, or under
Slurm's srun with a task for each process, it joins the world that is there.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from mar import distributed
from mar.files import atomic
from stages import once, params
from stages.cpus import count_cpus
from stages.stage import read_count


NODES = Path("work/nodes/stage.json")  # which stage the other machines join
MISTAKE = Path("work/nodes/mistake.json")  # what one of them has found wrong
HEARTBEAT = 2.0  # seconds between two signs of life of the first machine
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where a process of torch's launcher tells how it ended
TIMEOUT = timedelta(hours=1)  # until a process that does not answer is an error
GRACE = 600  # seconds that processes have to save and end after a signal
PORT = 29400
LOST = 75  # exit code of a process that has lost another one (sysexits: a temporary failure)
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def processes_here(stage: str) -> int:
    """Return how many processes a stage starts on this machine; 0 for none but this one.

    Raises:
        ValueError: `MAR_PROCESSES` or `MAR_NODES` is no number, or there are fewer GPUs.
    """
    nodes = read_count("MAR_NODES", 1, least=1)
    if "RANK" not in os.environ and nodes > 1 and not is_launched():
        NODES.unlink(missing_ok=True)  # of a first machine that has died
    if is_alone(stage) or "RANK" in os.environ or _in_slurm_step():
        return 0
    num = read_count("MAR_PROCESSES", processes_by_default(), least=1)
    device = os.environ.get("MAR_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    room = torch.cuda.device_count() if device == "cuda" else 1
    if device.startswith("cuda") and num > room:
        raise ValueError(f"MAR_PROCESSES: must be at most {room}, the GPUs of {device}, got {num}")
    return num if num * nodes > 1 else 0


def is_alone(stage: str) -> bool:
    """Whether a stage has no work for a GPU; its worker processes are those of a loader."""
    if stage != "encode_text":
        return stage == "prepare"
    text: Any = params.read().get("text")
    return not (isinstance(text, dict) and text.get("cache"))  # embeddings are written by all


def processes_by_default() -> int:
    """Return the number of GPUs here, or 1 without any, or if `MAR_DEVICE` names one device."""
    device = os.environ.get("MAR_DEVICE") or "cuda"
    return max(1, torch.cuda.device_count()) if device == "cuda" else 1


@dataclass(frozen=True)
class Failure:
    """How the processes of a machine have ended, if not well.

    Attributes:
        message: A user's mistake, as a process has told it.
        reason: What has happened otherwise.
        code: The exit code.
        is_accident: Whether to try again.
    """

    message: str | None
    reason: str
    code: int
    is_accident: bool


def start_processes(stage: str, num: int) -> None:
    """Run a stage in `num` processes here, and on the machines that join.

    After a lost process (killed, or its machine did not answer) all start again, from the last
    checkpoint, `MAR_RESTARTS` times.

    Raises:
        SystemExit: a process has failed, or this one was told to end.
    """
    nodes = read_count("MAR_NODES", 1, least=1)
    restarts = read_count("MAR_RESTARTS", 3, least=0)
    for attempt in range(restarts + 1):
        call: dict[str, Any] = {
            "stage": stage,
            "folder": str(Path.cwd()),
            "id": uuid.uuid4().hex,
            "nodes": nodes,
            "endpoint": os.environ.get("MAR_RENDEZVOUS") or f"{os.uname().nodename}:{PORT}",
        }
        with _announced(call) if nodes > 1 else nullcontext():
            failure = launch(call, num, node=0)
        if failure is None:
            return
        message = failure.message or _told_elsewhere(call)
        if message is not None:
            sys.stderr.write(message)
            raise SystemExit(1)
        if not failure.is_accident or attempt == restarts:
            sys.stderr.write(f"{stage}: {failure.reason}\n")
            raise SystemExit(failure.code)
        sys.stderr.write(
            f"{stage}: {failure.reason}; all start again from the last checkpoint "
            f"({attempt + 1} of {restarts})\n"
        )


def launch(call: dict[str, Any], num: int, node: int) -> Failure | None:
    """Run the processes of one machine to their end; return how they failed, if they did.

    Raises:
        SystemExit: a signal has ended them.
    """
    for name in list(logging.root.manager.loggerDict):  # what matters is said below, in one line
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with _environment(count_cpus() // num), _signal_handlers_kept():
            entry = elastic_launch(_config(call, num, node), sys.executable)
            entry("-m", f"stages.{call['stage']}")
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            sys.stderr.write(
                f"{call['stage']}: interrupted; the same command goes on from what is saved\n"
            )
        raise SystemExit(128 + error.sigval) from None
    except ChildFailedError as error:
        return _failure(list(error.failures.values()))
    except (dist.DistError, RendezvousError) as error:
        reason = f"machines did not meet at {call['endpoint']}: {str(error).splitlines()[0]}"
        return Failure(None, reason, LOST, is_accident=True)
    return None


def _config(call: dict[str, Any], num: int, node: int) -> LaunchConfig:
    """Return what torch's launcher is told: `num` processes on this machine, which is `node`."""
    several = call["nodes"] > 1
    return LaunchConfig(
        min_nodes=call["nodes"],
        max_nodes=call["nodes"],
        nproc_per_node=num,
        run_id=call["id"],
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=call["endpoint"] if several else "localhost:0",
        rdzv_configs={"rank": node, "timeout": 900} if several else {"timeout": 900},
        max_restarts=0,
        start_method="spawn",
        signals_to_handle=SIGNALS,
        shutdown_timeout=GRACE,
    )


@contextmanager
def _environment(num_cpus: int) -> Iterator[None]:
    """Set what each process finds in its environment, where a user has not set it otherwise."""
    before = dict(os.environ)
    share = str(max(1, num_cpus))
    environment = {
        "MAR_LAUNCHED": "1",
        "MAR_PIPELINE": once.pipeline_key(),  # else that of their parent: this process
        "OMP_NUM_THREADS": share,
        "MAR_WORKERS": share,
    }
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Put back the handlers of signals at the end, where torch's launcher leaves its own."""
    numbers = [signal.Signals[name] for name in SIGNALS.split(",")]
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _announced(call: dict[str, Any]) -> Iterator[None]:
    """Tell the other machines to join, and that this one is alive, while the block runs."""
    atomic.write_json(NODES, call)
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(HEARTBEAT):
            with suppress(OSError):
                NODES.touch()

    thread = threading.Thread(target=touch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        NODES.unlink(missing_ok=True)


def tell_first_machine(call: dict[str, Any], message: str) -> None:
    """Leave a user's mistake to the first machine, which else would try again."""
    atomic.write_json(MISTAKE, {"id": call["id"], "message": message})


def _told_elsewhere(call: dict[str, Any]) -> str | None:
    """Return the mistake that another machine has found, which may come a moment later."""
    until = time.monotonic() + (10.0 if call["nodes"] > 1 else 0.0)
    while True:
        with suppress(OSError, ValueError):
            found = atomic.read_json(MISTAKE)
            if found["id"] == call["id"]:
                return str(found["message"])
        if time.monotonic() >= until:
            return None
        time.sleep(0.5)


def tell(message: str) -> bool:
    """Leave an error's message to the launcher, if one has started this process."""
    path = os.environ.get(ERROR_FILE)
    if path is None or not is_launched():
        return False
    found = {"message": message, "extraInfo": {"timestamp": int(time.time())}}
    Path(path).write_text(json.dumps({"message": found}))
    return True


def is_connection_lost(error: BaseException) -> bool:
    """Whether an error says that another process does not answer any more."""
    if not distributed.is_distributed() or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))


def is_launched() -> bool:
    """Whether `launch` has started this process."""
    return "MAR_LAUNCHED" in os.environ


def is_for_another(stage: str) -> bool:
    """Whether this process has nothing to do in a stage that one process does alone."""
    rank = os.environ.get("RANK") or (os.environ["SLURM_PROCID"] if _in_slurm_step() else "0")
    return is_alone(stage) and rank != "0"


@contextmanager
def joined(stage: str, device: torch.device) -> Iterator[None]:
    """Join the processes that work together, if there are others, while the block runs."""
    if is_alone(stage):
        yield
        return
    if "RANK" in os.environ:
        place: dict[str, Any] = {"init_method": "env://"}
    elif _in_slurm_step():
        parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        meeting = "-".join(os.environ.get(name, "0") for name in parts)
        Path("work/nodes").mkdir(parents=True, exist_ok=True)
        place = {
            "init_method": (Path("work/nodes").resolve() / meeting).as_uri(),
            "rank": int(os.environ["SLURM_PROCID"]),
            "world_size": int(os.environ["SLURM_NTASKS"]),
        }
    else:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=TIMEOUT, **place)
    try:
        yield
    except RuntimeError as error:
        if not is_connection_lost(error):
            raise
        reason = str(error).splitlines()[0]
        sys.stderr.write(f"process {distributed.rank()}: another one does not answer ({reason})\n")
        os._exit(LOST)  # without waiting for it
    dist.destroy_process_group()


def local_rank() -> int | None:
    """Return the number of this process among those of its machine, if there are several."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if name in os.environ and (name == "LOCAL_RANK" or _in_slurm_step()):
            return int(os.environ[name])
    return None


def _in_slurm_step() -> bool:
    """Whether srun has started this process, and others with it, to work together."""
    if "MAR_NODES" in os.environ:  # then one of its tasks starts stages, which start processes
        return False
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in os.environ


def _failure(failures: Sequence[ProcessFailure]) -> Failure:
    """Return what ended the processes: a mistake that one tells, else who was killed."""
    told = [message for failure in failures if (message := _told(failure)) is not None]
    # What has lost another process has not begun it.
    first = min(failures, key=lambda failure: (failure.exitcode == LOST, failure.timestamp))
    code = first.exitcode
    how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
    if code == LOST:
        how = "lost the connection to another process"
    reason = f"process {first.local_rank} on {os.uname().nodename} {how}"
    return Failure(told[0] if told else None, reason, abs(code), code < 0 or code == LOST)


def _told(failure: ProcessFailure) -> str | None:
    """Return the message that a process has left, if its end was no accident."""
    data: Any = failure.error_file_data
    message = data.get("message") if isinstance(data, dict) else None
    if isinstance(message, dict):
        return str(message["message"])
    return None
