"""Start a stage as a program: parameters checked, alone, tracked, and with a clean end.

Loaded by name (`stages.stage.run`): what is here decides whether a stage runs and what is told of
it, never what it computes.
"""

import argparse
import ctypes
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from mar import distributed
from mar.files import atomic
from stages import failures, launch, params, tracking, work
from stages.locks import locked
from stages.stage import OUT, Stage, root


CLASSES = OUT / "prepare" / "classes.json"


def run(main: Callable[[Stage], None]) -> None:
    """Run a stage's `main` as a program, which takes no arguments but `--help`."""
    module = sys.modules["__main__"]
    name = Path(module.__file__ or "").stem
    argparse.ArgumentParser(
        prog=f"python -m stages.{name}",
        description=f"{(module.__doc__ or '').strip()} Its settings are in params.yaml; "
        "`dvc repro` runs it when they, or its inputs, have changed.",
    ).parse_args()
    start(name, main)


def start(name: str, main: Callable[[Stage], None]) -> None:
    """Run a stage's `main`; a mistake of a user ends it with one readable message."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _exit)
    if os.environ.get("DVC_STAGE") or launch.is_launched():
        _end_with_parent()
    try:
        if num := launch.processes_here(name):
            launch.start_processes(name, num)
        elif not launch.is_for_another(name):
            execute(name, main)
    except KeyboardInterrupt:
        if os.environ.get("MAR_TRACEBACK"):
            raise
        if not launch.is_launched():
            sys.stderr.write(f"{name}: interrupted; the same command goes on from what is saved\n")
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        lines = failures.explain(name, error)
        if lines is None or os.environ.get("MAR_TRACEBACK"):
            raise
        message = "".join(f"{name}: {line}\n" for line in lines)
        if not launch.tell(message):
            sys.stderr.write(message)
        raise SystemExit(1) from None


def execute(name: str, main: Callable[[Stage], None]) -> None:
    """Run a stage's `main` once `params.yaml` is found fine, alone, and tracked.

    All of `params.yaml` is checked, so a typo in a later stage's section does not wait for hours to
    be found. Of several processes the main one does all of that, and the others wait.

    Raises:
        ValueError: a mistake of a user.
    """
    device = choose_device()
    with launch.joined(name, device), ExitStack() as held:
        opened = distributed.from_main(lambda: _open(name, device, held))
        if distributed.is_main():
            _run_tracked(name, main, device, opened)
        else:
            main(Stage(name, OUT / name, opened.folder, device, Silent()))


def choose_device() -> torch.device:
    """Return the device of `MAR_DEVICE`, else the first accelerator, else the CPU."""
    chosen = os.environ.get("MAR_DEVICE")
    if chosen and not (chosen == "cuda" and launch.local_rank() is not None):
        return usable_device(chosen, "MAR_DEVICE")
    if torch.cuda.is_available():
        local_rank = launch.local_rank()
        if local_rank is None:
            return torch.device("cuda")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_device(name: str, key: str) -> torch.device:
    """Return the device of a name.

    Raises:
        ValueError: nothing can be computed on it; the message begins with the key.
    """
    try:
        device = torch.empty(0, device=name).device
        torch.ones(2, device=device).sum().item()  # refused where nothing is computed (meta)
        return device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key}: cannot use {name!r}: {reason}") from None


def _check_params(name: str) -> None:
    """Check the whole of `params.yaml`, unless the same file passed the same checks before.

    The check imports everything, which takes seconds.
    """
    files = [params.FILE, *sorted(Path("mar").rglob("*.py")), *sorted(Path("stages").rglob("*.py"))]
    if name != "prepare":  # which makes the classes anew
        files.append(CLASSES)
    passed = work.ROOT / "checked"
    state = [f"{atomic.digest(path)} {path}" for path in files if path.is_file()]
    work.ROOT.mkdir(exist_ok=True)
    with locked(passed.with_suffix(".lock")):  # stages may start side by side
        before = passed.read_text().splitlines() if passed.is_file() else []
        if before != state:
            check = import_module("stages.check")
            configs = check.check_all()
            warnings: list[str] = []
            if name == "prepare":  # the first of a run; others may run where not all files are
                warnings += check.named_paths.check_run(configs)
            if state[0] not in before:  # once for each params.yaml
                warnings += check.config_warnings(configs)
            if CLASSES in files and CLASSES.is_file():
                warnings += check.check_classes(configs, CLASSES)
            sys.stderr.writelines(f"{params.FILE}: {warning}\n" for warning in warnings)
            atomic.write_text(passed, "\n".join(state))


class _Opened(NamedTuple):
    """What a stage begins with: its work folder, and what it read (see `work.check_unchanged`)."""

    folder: Path
    sections: dict[str, Any]
    inputs: dict[str, str]


def _open(name: str, device: torch.device, held: ExitStack) -> _Opened:
    """Check everything, take the stage's lock, and open its work folder."""
    _check_params(name)
    held.enter_context(work.exclusive(name))
    import_module("stages.memory").check(name, device)  # imports what prepare does without
    work.remove_recorded()
    sections, inputs = work.sections(name), work.input_digests(name)
    folder = work.open_folder(name, inputs)
    if not any(folder.iterdir()):  # a fresh start: the pictures of another one would mix with ours
        shutil.rmtree(root() / "work" / "previews" / name, ignore_errors=True)
    return _Opened(folder, sections, inputs)


def _run_tracked(
    name: str, main: Callable[[Stage], None], device: torch.device, opened: _Opened
) -> None:
    folder = opened.folder
    run_id = folder / work.RUN_ID
    tags = {"mar.fingerprint": folder.name, "mar.device": str(device)}
    if distributed.num_processes() > 1:
        tags["mar.processes"] = str(distributed.num_processes())
    tags |= {f"dvc.dep.{path}": digest for path, digest in opened.inputs.items()}
    if Path("dvc.lock").is_file():
        tags["dvc.lock"] = atomic.digest(Path("dvc.lock"))
    resume = run_id.read_text() if run_id.is_file() else None
    started = time.monotonic()
    with work.kept_if_begun(folder), tracking.track(name, tags, resume) as tracked:
        if tracked.id:
            atomic.write_text(run_id, tracked.id)
        main(Stage(name, OUT / name, folder, device, tracked))
        tracked.speeds({"seconds": time.monotonic() - started, "peak_memory_gib": _peak_gib()})
        work.check_unchanged(name, opened.sections, opened.inputs)
    if others := work.finish(folder):
        kept = ", ".join(str(other) for other in others)
        sys.stderr.write(f"{name}: unfinished work of other settings is kept: {kept}\n")


class Silent:
    """The record of a process that is not the main one: none."""

    def params(self, values: Mapping[str, object]) -> None:
        """Do nothing."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Do nothing."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Do nothing."""

    def picture(self, path: Path, name: str = "") -> None:
        """Do nothing."""

    def document(self, path: Path) -> None:
        """Do nothing."""

    def step_picture(self, path: Path, key: str, step: int) -> None:
        """Do nothing."""

    def speeds(self, values: Mapping[str, float]) -> None:
        """Do nothing."""


def _peak_gib() -> float:
    """Return the most memory that this process held at any time, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**3 if sys.platform == "darwin" else 1024**2)


def _end_with_parent() -> None:
    """On Linux, ask for SIGTERM when the parent process, DVC, dies; end now if it has already.

    A killed DVC would otherwise leave its stage running, and a second trainer would start beside
    it. Who adopts an orphan is seldom a Python program, which DVC is, as a command or as a library.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        with suppress(OSError):
            command, _, _ = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().partition(b"\0")
            if b"python" not in command and b"dvc" not in command:
                raise SystemExit(128 + signal.SIGTERM)


def _exit(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one would cut the tidying short
    raise SystemExit(128 + signum)
