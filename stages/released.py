"""Read files that others made, for a stage whose section names one.

By name, not by an import statement: what opens such a file and checks it can refuse a run and tell
of it, and never changes what is made of the tensors, so editing it must not make DVC train again.
"""

from importlib import import_module
from typing import Any

from stages.stage import Stage


def read(stage: Stage, part: str, section: Any, model: Any) -> Any:
    """Return what `mar.released.reader` finds in the file of a section, and say what it remarks.

    Args:
        stage: The stage, for the repository where a relative path begins.
        part: `tokenizer` or `generator`.
        section: That section of `params.yaml`.
        model: What it describes.

    Raises:
        ValueError: the file is missing, another one, damaged, or its tensors do not fit the model.
    """
    reader = import_module("mar.released.reader")
    found = getattr(reader, f"read_{part}")(section, model, base=stage.root)
    stage.warn(found.remarks)
    return found
