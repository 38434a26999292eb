"""Run a function of a test in several processes that work together (gloo)."""

import importlib
import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist


SECONDS = 600.0  # until a process that says nothing is a failure


def in_processes(
    function: Callable[..., Any], num: int, folder: Path, *args: object, killed: int = 0
) -> list[Any]:
    """Return what `function(*args)` returns in each of `num` processes, by rank.

    Args:
        function: A function at the top of a module.
        num: How many processes.
        folder: An empty or missing folder of this call.
        args: What it is called with; it and the results must be picklable.
        killed: How many of the first processes end by SIGKILL; they have no result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = sys.modules[function.__module__]
    assert module.__file__ is not None
    context = multiprocessing.get_context("forkserver")  # imports torch once for all of them
    context.set_forkserver_preload(["torch", "torch.distributed", "mar.training.generator"])
    queue = context.Queue()
    call = (module.__file__, function.__name__, args)
    workers = [
        context.Process(target=_work, args=(queue, rank, num, str(folder), *call), daemon=True)
        for rank in range(num)
    ]
    for worker in workers:
        worker.start()
    try:
        results = dict(pickle.loads(queue.get(timeout=SECONDS)) for _ in workers[killed:])
    except Empty:
        codes = [worker.exitcode for worker in workers]
        raise AssertionError(f"a process gave no result; exit codes: {codes}") from None
    finally:
        for worker in workers:
            worker.join(timeout=5)
            worker.kill()
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    assert all(worker.exitcode == -signal.SIGKILL for worker in workers[:killed])
    return [results[rank] for rank in range(killed, num)]


def _work(queue: Any, rank: int, num: int, folder: str, file: str, name: str, args: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    sys.path.insert(0, str(Path(file).parent))
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=num
        )
        result = getattr(importlib.import_module(Path(file).stem), name)(*args)
    except Exception as error:
        result = error
    queue.put(pickle.dumps((rank, result)))  # a copy: its process ends before it is read
    queue.close()
    queue.join_thread()
    dist.destroy_process_group()
