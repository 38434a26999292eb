"""What every stage shares: validated parameters, a work folder, a tracked run, and a clean end."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
from filelock import FileLock

from mar.config import Config
from mar.files import atomic
from stages import params, tracking, work


T = TypeVar("T")

OUT = Path("out")
CLASSES = OUT / "prepare" / "classes.json"


@dataclass(frozen=True)
class Stage:
    """One stage while it runs.

    Attributes:
        name: Its name in `dvc.yaml`.
        out: The folder of its outputs.
        work: The folder from which a killed stage continues.
        device: Where its tensors live (`MAR_DEVICE`; by default the first accelerator, else CPU).
        run: Its MLflow run.
    """

    name: str
    out: Path
    work: Path
    device: torch.device
    run: tracking.Run

    @property
    def root(self) -> Path:
        """The repository, also from within a temporary copy that DVC made for an experiment."""
        return tracking.root()

    @property
    def workers(self) -> int:
        """Processes that decode images (`MAR_WORKERS`; by default one per CPU that is ours)."""
        return read_count("MAR_WORKERS", _count_cpus(), least=0)

    @property
    def micro_batch(self) -> int:
        """Images whose activations are held at a time (`MAR_MICRO_BATCH`)."""
        return read_count("MAR_MICRO_BATCH", 256, least=1)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed again instead of kept (`MAR_CHECKPOINTING`)."""
        return read_count("MAR_CHECKPOINTING", 0, least=0) > 0

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass: bfloat16 on a GPU, float32 elsewhere."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return nullcontext()

    def preview(self, kind: str, **values: Any) -> None:
        """Draw a picture of the work so far, for people; nothing is computed from it.

        So a picture that cannot be drawn (an early sample is NaN, the disk is full) is said and
        ends no training. By name, not by an import statement, for the reason given in
        `_check_params`.
        """
        try:
            # An output, if all of them fail.
            (self.out / "previews").mkdir(parents=True, exist_ok=True)
            getattr(import_module("stages.previews"), kind)(self, **values)
        except Exception as error:  # its code may be edited meanwhile, so anything can happen
            sys.stderr.write(f"{self.name}: no picture: {type(error).__name__}: {error}\n")

    def preflight(self, **values: Any) -> dict[str, float]:
        """Compare what a long training begins with, and return what was found, for people.

        By name, as `preview`: it can stop a training, and never change its result.

        Raises:
            ValueError: inputs do not belong together.
        """
        return import_module("stages.preflight").check(self, **values)

    def params(self, section: str, kind: type[T] | Any) -> T:
        """Load a section of `params.yaml` and log it."""
        config: T = params.load(section, kind)
        self.run.params({section: config.model_dump() if isinstance(config, Config) else config})
        return config

    def write_metrics(self, values: dict[str, Any]) -> None:
        """Write `metrics.json`, with the id of the run that made it, and log the numbers."""
        self.run.metrics(values)
        atomic.write_json(self.out / "metrics.json", {**values, "run_id": self.run.id})


def run(main: Callable[[Stage], None]) -> None:
    """Run a stage's `main` as a program; a mistake of a user ends it with one readable message."""
    name = Path(sys.modules["__main__"].__file__ or "").stem
    signal.signal(signal.SIGTERM, _exit)
    if os.environ.get("DVC_STAGE"):
        _end_with_parent()
    try:
        execute(name, main)
    except KeyboardInterrupt:
        if os.environ.get("MAR_TRACEBACK"):
            raise
        sys.stderr.write(f"{name}: interrupted; the same command goes on from what is saved\n")
        raise SystemExit(128 + signal.SIGINT) from None
    except (ValueError, OSError, torch.OutOfMemoryError) as error:
        if os.environ.get("MAR_TRACEBACK"):
            raise
        sys.stderr.write(f"{name}: {error}\n")
        if isinstance(error, torch.OutOfMemoryError):
            sys.stderr.write(
                f"{name}: less memory is taken with a smaller MAR_MICRO_BATCH (trainings), "
                "MAR_SAMPLE_BATCH (sample) or latents.batch_size (encode), and with "
                "MAR_CHECKPOINTING=1 (train_generator)\n"
            )
        raise SystemExit(1) from None


def execute(name: str, main: Callable[[Stage], None]) -> None:
    """Run a stage's `main` once `params.yaml` is found fine, alone, and tracked.

    All of `params.yaml` is checked, so a typo in a later stage's section does not wait for hours to
    be found.

    Raises:
        ValueError: a mistake of a user.
    """
    _check_params(name)
    with work.exclusive(name):
        _run_tracked(name, main)


def read_count(variable: str, default: int, *, least: int) -> int:
    """Return a whole number from the environment.

    Raises:
        ValueError: it is not a whole number, or too small.
    """
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{variable}: must be a whole number from {least} on, got {text!r}")
    return int(text)


def choose_device() -> torch.device:
    """Return the device of `MAR_DEVICE`, else the first accelerator, else the CPU."""
    if chosen := os.environ.get("MAR_DEVICE"):
        try:
            return torch.empty(0, device=chosen).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"MAR_DEVICE: cannot use {chosen!r}: {reason}") from None
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _check_params(name: str) -> None:
    """Check the whole of `params.yaml`, unless the same file passed the same checks before.

    By name, not by an import statement: a check cannot change a result, so editing what only the
    check imports must not make DVC run a stage again. It imports everything, which takes seconds.
    """
    files = [params.FILE, *sorted(Path("mar").rglob("*.py")), *sorted(Path("stages").rglob("*.py"))]
    if name != "prepare":  # which makes the classes anew
        files.append(CLASSES)
    passed = work.ROOT / "checked"
    state = [f"{atomic.digest(path)} {path}" for path in files if path.is_file()]
    work.ROOT.mkdir(exist_ok=True)
    with FileLock(passed.with_suffix(".lock")):  # stages may start side by side
        before = passed.read_text().splitlines() if passed.is_file() else []
        if before != state:
            check = import_module("stages.check")
            configs = check.check_all()
            if CLASSES in files and CLASSES.is_file():
                check.check_classes(configs, CLASSES)
            if state[0] not in before:  # once for each params.yaml
                lines = [f"{params.FILE}: {doubt}\n" for doubt in check.config_warnings(configs)]
                sys.stderr.writelines(lines)
            atomic.write_text(passed, "\n".join(state))


def _run_tracked(name: str, main: Callable[[Stage], None]) -> None:
    device = choose_device()
    work.remove_recorded()
    read, inputs = work.sections(name), work.input_digests(name)
    folder = work.open_folder(name, inputs)
    run_id = folder / work.RUN_ID
    tags = {"mar.fingerprint": folder.name, "mar.device": str(device)}
    tags |= {f"dvc.dep.{path}": digest for path, digest in inputs.items()}
    if Path("dvc.lock").is_file():
        tags["dvc.lock"] = atomic.digest(Path("dvc.lock"))
    resume = run_id.read_text() if run_id.is_file() else None
    record = tracking.root() / "work" / "tracking" / f"{name}.jsonl"
    started = time.monotonic()
    with work.kept_if_begun(folder), tracking.track(name, record, tags, resume) as tracked:
        if tracked.id:
            atomic.write_text(run_id, tracked.id)
        main(Stage(name, OUT / name, folder, device, tracked))
        tracked.metrics({"seconds": time.monotonic() - started, "peak_memory_gib": _peak_gib()})
        work.check_unchanged(name, read, inputs)
    if others := work.finish(folder):
        kept = ", ".join(str(other) for other in others)
        sys.stderr.write(f"{name}: unfinished work of other settings is kept: {kept}\n")


def _count_cpus() -> int:
    """Return how many CPUs this process may use, which can be fewer than there are."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
        import ctypes

        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        with suppress(OSError):
            command, _, _ = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().partition(b"\0")
            if b"python" not in command and b"dvc" not in command:
                raise SystemExit(128 + signal.SIGTERM)


def _exit(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one would cut the tidying short
    raise SystemExit(128 + signum)
