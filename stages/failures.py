"""What a stage says when it ends with an error: the error in a line, and what to do about it.

It changes nothing that a stage makes.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mar.files import seal
from mar.files.seal import DamagedFileError
from stages import work
from stages.endings import is_out_of_memory


SMALLER = {  # what takes less memory in a stage
    "prepare": "fewer MAR_WORKERS",
    "reference": "fewer MAR_WORKERS, or a smaller reference.num_features or, for the classifier, a "
    "smaller reference.classifier.batch_size or width",
    "train_tokenizer": "a smaller MAR_MICRO_BATCH, fewer MAR_WORKERS, or a smaller "
    "tokenizer_training.batch_size, data.image_size or tokenizer",
    "reconstruct": "fewer MAR_WORKERS, or a smaller data.image_size or tokenizer",
    "encode": "a smaller latents.batch_size or latents.shard_images, or fewer MAR_WORKERS",
    "train_generator": "a smaller MAR_MICRO_BATCH, MAR_CHECKPOINTING=1, or a smaller "
    "training.batch_size or generator.size",
    "sample": "a smaller MAR_SAMPLE_BATCH or sample.shard_images",
    "evaluate": "a smaller sample.num_images or reference.num_features",
}


def explain(stage: str, error: Exception) -> list[str] | None:
    """Return what to say about an error, or nothing where it is no user's but the code's fault."""
    if isinstance(error, torch.OutOfMemoryError) or is_out_of_memory(error):
        smaller = SMALLER.get(stage, "smaller sizes")
        return [f"there is not enough memory ({_first_line(error)}); less is taken with {smaller}"]
    if isinstance(error, DamagedFileError):
        return [str(error), remedy(error.path)]
    if isinstance(error, ValueError | OSError):
        return [str(error)]
    return None


def remedy(path: Path) -> str:
    """Return the commands that replace a damaged file of a stage.

    DVC's cache may hold a whole copy. But it may as well be the same file, by a hard link, or a
    copy of it as it is now; and a stage that runs again makes the same digest, for which DVC would
    keep the copy that it has.
    """
    if (made_by := _maker(path)) is None:
        return f"remove {path}, and run again what made it"
    stage, output = made_by
    copy = _cached(path, output)
    quoted = shlex.quote(str(path))
    if copy is not None and _is_whole(copy):
        return (
            f"DVC's cache holds it as it was written: rm -f {quoted} && dvc checkout --force "
            f"{shlex.quote(output)}, then the same command"
        )
    damaged = quoted if copy is None else f"{quoted} {shlex.quote(str(copy))}"
    which = "" if copy is None else "the copy in DVC's cache is damaged as well; "
    return (
        f"{which}to make it again: rm -f {damaged} && dvc repro --single-item --force {stage}, "
        "then the same command"
    )


def _first_line(error: Exception) -> str:
    """Return the error without torch's remarks on where in its code it was."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0].rpartition("DefaultCPUAllocator: ")[2]


def _maker(path: Path) -> tuple[str, str] | None:
    """Return the stage that makes a file, and the output of `dvc.yaml` that holds it."""
    for stage, declared in work.declarations().items():
        for entry in [*declared.get("outs", []), *declared.get("plots", [])]:
            output = next(iter(entry)) if isinstance(entry, dict) else entry
            if path == Path(output) or Path(output) in path.parents:
                return stage, output
    return None


def _cached(path: Path, output: str) -> Path | None:
    """Return the copy of a file in DVC's cache, if there is one."""
    md5 = work.recorded_outputs().get(output)
    if md5 is None or (folder := _cache_folder()) is None:
        return None
    if md5.endswith(".dir"):
        listing = folder / md5[:2] / md5[2:]
        try:
            files: list[dict[str, Any]] = json.loads(listing.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        names = {entry["relpath"]: entry["md5"] for entry in files}
        md5 = names.get(path.relative_to(output).as_posix())
    copy = None if md5 is None else folder / md5[:2] / md5[2:]
    return copy if copy is not None and copy.is_file() else None


def _cache_folder() -> Path | None:
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    folder = Path(found.stdout.strip(), "files", "md5")
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _is_whole(path: Path) -> bool:
    try:
        seal.check(path)
    except (ValueError, OSError):
        return False
    return True
