"""Draw the pictures of a stage. No result depends on one, so none may end a stage."""

import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from mar.evaluation.image_grid import one_line, save_png
from stages.stage import Stage


def save(stage: Stage, path: Path, draw: Callable[[], Image.Image]) -> None:
    """Draw a picture, write it and log it.

    One that cannot be drawn is reported, and a blank one with the reason takes its place, as DVC
    expects the file.
    """
    try:
        picture = draw()
    except Exception as error:  # of matplotlib, PIL, a feature extractor out of memory, ...
        reason = f"cannot draw {path.name}: {type(error).__name__}: {error}"
        sys.stderr.write(f"{stage.name}: {reason}; nothing else is affected\n")
        picture = Image.new("RGB", (600, 40), (255, 255, 255))
        ImageDraw.Draw(picture).text((8, 12), one_line(reason)[:100], fill=(0, 0, 0))
    save_png(path, picture)
    stage.run.picture(path)
