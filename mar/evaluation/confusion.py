"""How often images of one class are taken for another, as numbers and as a picture.

Shapes: B images, K classes.
"""
# matplotlib's keyword arguments have no types:
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor


MAX_NUMBERS, MAX_NAMES = 20, 40  # classes: with more, numbers and names would overlap


def confusion_matrix(
    labels: Int[Tensor, " B"], predicted: Int[Tensor, " B"], *, num_classes: int
) -> Float[Tensor, "K K"]:
    """Return the share of each class's images (rows) that is taken for each class (columns).

    The row of a class without images is zero.
    """
    counts = torch.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    counts = counts.reshape(num_classes, num_classes).float()  # (K, K)
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def confusion_picture(matrix: Float[Tensor, "K K"], class_names: Sequence[str]) -> Image.Image:
    """Draw a confusion matrix in percent; what does not fit between many classes is left out."""
    figure = Figure(figsize=(6, 6), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="Blues")
    axes.set_title("share of the images of each label, in percent")
    axes.set_xlabel("taken for")
    axes.set_ylabel("label")
    if len(class_names) <= MAX_NAMES:
        axes.set_xticks(range(len(class_names)), class_names, rotation=90)
        axes.set_yticks(range(len(class_names)), class_names)
    if len(class_names) <= MAX_NUMBERS:
        for (row, column), share in np.ndenumerate(matrix.numpy()):
            if share >= 0.005:  # nothing that would show as 0
                color = "white" if share > 0.5 else "black"
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
