"""Draw the PSNR of held-out images against the steps of tokenizer trainings, side by side.

`python -m benchmarks.tokenizer_curves CURVES... --to PICTURE`, where each curve is the
`out/train_tokenizer/held_out_psnr.csv` of a training, kept under a name that tells it apart.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd


def main() -> None:
    """Read the curves and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("curves", nargs="+", type=Path, help="files of curves")
    parser.add_argument("--to", required=True, type=Path, help="the picture")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for path in arguments.curves:
        curve = pd.read_csv(path)
        axes.plot(curve["step"], curve["held_out_psnr"], marker=".", label=path.stem)
    axes.set(xlabel="optimiser steps", ylabel="PSNR of held-out images, dB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.to, dpi=110)


if __name__ == "__main__":
    main()
