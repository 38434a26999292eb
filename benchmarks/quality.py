"""Measure quality against time: heads, solvers and numbers of steps, in one table and one plot.

    python -m benchmarks.quality --train 2000 --seeds 0 1
    python -m benchmarks.quality --images 1000
    python -m benchmarks.quality --draw docs/sampling-photographs64.csv --title TITLE

The first line trains the heads of HEADS on the latents in `out/`, all else being as `params.yaml`
says. The second samples with each of these models in every way of MODES (or those of `--curves` and
`--steps`), scores the images against `out/reference` and draws the plot. Both take up where they
were broken off. `--models` takes other generators on the same tokenizer, such as
`out/train_generator/ema.safetensors`. The third draws the plot of a table alone.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.ticker import LogFormatter
from ruamel.yaml import YAML
from torch import Tensor
from tqdm import tqdm

from mar.data.class_names import read_class_names
from mar.evaluation import score_names
from mar.evaluation.image_grid import label_grid, save_png
from mar.files import atomic, seal
from mar.heads.registry import HEADS as KINDS
from mar.latents.cache import LatentCache
from mar.latents.info import LatentsInfo
from mar.model.mar import MAR, GeneratorConfig
from mar.model.saved import load_mar, save_mar
from mar.sampling.config import SampleConfig, check_fit
from mar.sampling.images import generate_images
from mar.sampling.labels import balanced_labels
from mar.tokenizers.registry import load_tokenizer
from mar.training.generator import TrainingConfig, new_trainer, train
from stages import params
from stages.scoring import FOLDER, Scorer
from stages.stage import OUT, autocast


LATENTS = OUT / "encode" / "latents"
TOKENIZER = OUT / "train_tokenizer" / "tokenizer.safetensors"
SHOWN = 40  # images of a row in its picture

HEADS: dict[str, dict[str, Any]] = {  # section generator.head, with size and draws of params.yaml
    "diffusion": {"kind": "diffusion"},
    "flow": {"kind": "flow", "times": None},
    "flow-logit-normal": {"kind": "flow", "times": {"mean": 0.0, "std": 1.0}},
    "meanflow": {"kind": "meanflow", "times": {"mean": -0.4, "std": 1.0}},
    "energy": {"kind": "energy", "alpha": 1.0},
}
# By kind of head, the curves of the plot: what differs from section sample and COMMON, and the
# numbers of steps of a token. num_steps is that of the generation.
MODES: dict[str, dict[str, tuple[dict[str, Any], list[int]]]] = {
    "diffusion": {
        "ancestral": ({"solver": "ancestral"}, [5, 10, 25, 50, 100]),
        "annealed to 5": ({"solver": "ancestral", "final_num_steps": 5}, [25, 50]),
        "DDIM": ({"solver": "ddim"}, [5, 10, 25]),
        "DPM-Solver++": ({"solver": "dpm++"}, [5, 10, 25]),
        "8 generation steps": ({"solver": "ancestral", "num_steps": 8}, [10, 25]),
        "8 in halves": (
            {"solver": "ancestral", "num_steps": 8, "reconstruction_steps": 2},
            [10, 25],
        ),
    },
    "flow": {
        "Euler": ({"solver": "euler"}, [1, 2, 4, 8, 25]),
        "Adams": ({"solver": "adams"}, [3, 4, 8, 25]),
        "Heun": ({"solver": "heun"}, [4]),
        "midpoint": ({"solver": "midpoint"}, [2, 4]),
        "8 generation steps": ({"solver": "adams", "num_steps": 8}, [8]),
        "8 in halves": ({"solver": "adams", "num_steps": 8, "reconstruction_steps": 2}, [8]),
    },
    "meanflow": {"equal steps": ({}, [1, 2, 4, 8])},
    "energy": {
        "one evaluation": ({}, [1]),
        "one evaluation, guidance 2": ({"guidance_scale": 2.0}, [1]),
    },
}
CURVES = list(dict.fromkeys(curve for curves in MODES.values() for curve in curves))
COMMON = {  # of section sample.head, for the heads that have the key
    "num_steps": 1,
    "final_num_steps": None,
    "annealing": "linear",
    "solver": "",
    "temperature": 1.0,
    "x_0_bound": 4.0,
    "precision": "float32",
}


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--train", type=int, metavar="STEPS", help="train the models that are missing, and end")
    add("--heads", nargs="+", choices=HEADS, default=list(HEADS), metavar="HEAD",
        help=f"what to train, of {', '.join(HEADS)} (default: all)")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=[0], help="of the trainings (default: 0)")
    add("--models", type=Path, nargs="+", metavar="FILE",
        help="generators to sample with (default: those that --train has made)")  # fmt: skip
    add("--curves", nargs="+", choices=CURVES, default=CURVES, metavar="CURVE",
        help=f"ways of sampling, of {', '.join(CURVES)} (default: all)")  # fmt: skip
    add("--steps", type=int, nargs="+", help="of a token (default: all those of each curve)")
    add("--draw", type=Path, metavar="TABLE",
        help="a .csv of rows that were measured: draw its plot beside it, and end")  # fmt: skip
    add("--images", type=int, default=1000, help="images of each row")
    add("--batch", type=int, default=250, help="images generated at a time")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE",
        help="keys of section sample or sample.head, for all rows that have them and whose curve "
        "does not set them")  # fmt: skip
    add("--device", type=torch.device, default=torch.device("cpu"))
    add("--title", default="", help="of the plot")
    add("--out", type=Path, default=Path("work/quality"), help="where all is written")
    return parser.parse_args()


def train_models(arguments: argparse.Namespace) -> None:
    """Train each head with each seed, unless its file is there."""
    section = params.read()["generator"]
    generator = {key: value for key, value in section.items() if key != "source"}
    same = {key: section["head"][key] for key in ("size", "noise_samples_per_token")}
    training = params.load("training", TrainingConfig)
    info = LatentsInfo.read(LATENTS.with_suffix(".json"))
    cache = LatentCache(LATENTS, info, on_device=True)
    context = partial(autocast, arguments.device)
    for seed in arguments.seeds:
        for name in arguments.heads:
            path = arguments.out / "models" / f"{name}-{seed}.safetensors"
            if path.is_file():
                continue
            fields = {**generator, "head": {**same, **HEADS[name]}}
            config = params.parse("generator", fields, GeneratorConfig)
            model = MAR(config, info.latent, info.num_classes, info.codebook_size)
            chosen = training.model_copy(update={"steps": arguments.train, "seed": seed})
            trainer = new_trainer(model.to(arguments.device), chosen)
            steps = train(trainer, cache, chosen, micro_batch=chosen.batch_size, autocast=context)
            for _ in tqdm(steps, total=chosen.steps, desc=f"{name}, seed {seed}", mininterval=5):
                pass
            path.parent.mkdir(parents=True, exist_ok=True)
            save_mar(path, trainer.ema, info.tokenizer)


def ways(kind: str, given: dict[str, Any]) -> Iterator[tuple[str, SampleConfig]]:
    """Yield every way of sampling with a kind of head, with the name of its curve.

    Args:
        kind: Of the head.
        given: Keys of section sample or sample.head that are the same in all rows but those whose
            curve sets them; num_steps is that of the generation.
    """
    section = params.read()["sample"]
    unknown = given.keys() - section.keys() - COMMON.keys()
    if unknown:
        raise ValueError(f"--set {min(unknown)}: is not a key of section sample or sample.head")
    sampler = KINDS[kind].sampler
    for curve, (changes, counts) in MODES[kind].items():
        deterministic = changes.get("solver") in {"ddim", "dpm++"}  # there is no noise to scale
        own = {**given, **changes, **({"temperature": 1.0} if deterministic else {})}
        for count in counts:
            head = {**COMMON, **own, "num_steps": count}
            head = {key: value for key, value in head.items() if key in sampler.model_fields}
            fields = {**section, **{key: own[key] for key in own if key in section}}
            fields["head"] = {"kind": kind, **head}
            yield curve, params.parse("sample", fields, SampleConfig)


@dataclass(frozen=True)
class Bench:
    """What all rows are measured with."""

    images: int
    batch: int
    device: torch.device
    info: LatentsInfo
    tokenizer: Any
    scorer: Scorer

    @classmethod
    def open(cls, arguments: argparse.Namespace) -> "Bench":
        """Read the tokenizer and the reference in `out/`."""
        info = LatentsInfo.read(LATENTS.with_suffix(".json"))
        tokenizer = load_tokenizer(TOKENIZER).to(arguments.device)
        names = read_class_names(OUT / "prepare" / "classes.json")
        scorer = Scorer.open(FOLDER, info.latent.height * tokenizer.stride, names, None)
        return cls(arguments.images, arguments.batch, arguments.device, info, tokenizer, scorer)

    def measure(self, model: MAR, config: SampleConfig) -> tuple[dict[str, Any], Tensor]:
        """Return the cost and the scores of one way of sampling, and the images."""
        labels = balanced_labels(self.images, None, model.num_classes)
        parts = torch.arange(self.images).split(self.batch)
        calls: list[int] = []
        hooks = [
            module.register_forward_pre_hook(lambda *_: calls.append(1))
            for name, module in model.head.named_modules()
            if name.endswith("final.norm")  # in the last layer of every network; all ways call it
        ]
        wall, cpu = time.perf_counter(), time.process_time()
        batches = [
            generate_images(
                model, self.tokenizer, labels[part], part.tolist(), config,
                latent_std=self.info.latent_std, autocast=partial(autocast, self.device),
            )
            for part in parts
        ]  # fmt: skip
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        for hook in hooks:
            hook.remove()
        images = torch.cat(batches)
        report, _ = self.scorer.score(images, labels, self.device)
        cost = {
            "evaluations": len(calls) // len(parts),
            # On a CPU, what other programs take does not count.
            "seconds": (cpu if self.device.type == "cpu" else wall) / self.images,
        }
        return {**cost, **report["samples"]}, images

    def picture(self, images: Tensor) -> Any:
        """Show the first images, below each the class that was asked for."""
        labels = balanced_labels(SHOWN, None, len(self.scorer.class_names))[: len(images)]
        names = self.scorer.class_names
        return label_grid(images[:SHOWN], labels, class_names=names, columns=10)


def misfit(model: MAR, curve: str, config: SampleConfig) -> str | None:
    """Return why a curve with generation steps of its own is not for a model; None if it is."""
    if "num_steps" not in MODES[model.config.head.kind][curve][0]:
        return None
    try:
        check_fit(config, model.config, model.num_tokens)
    except ValueError as error:
        return str(error)
    return None


def measure_all(arguments: argparse.Namespace, file: Path) -> list[dict[str, Any]]:
    """Measure the rows that the file lacks, adding each to it; return all."""
    rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
    given = dict(text.split("=", 1) for text in arguments.set)
    given = {key: YAML(typ="safe").load(value) for key, value in given.items()}
    bench = Bench.open(arguments)
    for path in arguments.models or sorted((arguments.out / "models").glob("*.safetensors")):
        model = load_mar(path, seal.digest(TOKENIZER)).to(arguments.device)
        name, _, seed = path.stem.rpartition("-")
        for curve, config in ways(model.config.head.kind, given):
            steps = getattr(config.head, "num_steps", 1)
            if curve not in arguments.curves or steps not in (arguments.steps or [steps]):
                continue
            if reason := misfit(model, curve, config):
                print(f"{name}: {curve} left out: {reason}", flush=True)
                continue
            row = {"model": name, "seed": seed, "curve": curve, "images": arguments.images,
                   "batch": arguments.batch, "device": str(arguments.device),
                   "sample": config.model_dump()}  # fmt: skip
            if any(row.items() <= known.items() for known in rows):
                continue
            found, images = bench.measure(model, config)
            rows.append({**row, "steps": steps, **found})
            atomic.write_json(file, rows)
            shown = f"{name}-{seed}-{curve}-{steps}.png".replace(" ", "-")
            save_png(arguments.out / "pictures" / shown, bench.picture(images))
            print(json.dumps({key: rows[-1][key] for key in ("model", "seed", "curve", "steps")}),
                  json.dumps(found), flush=True)  # fmt: skip
    return rows


def is_drawn(name: str) -> bool:
    """Whether a score is in the plot: the FID, and the share recognised as their class."""
    base, _, is_spread = score_names.parts(name)
    return base in {"fid", "classifier_fid", "classifier_accuracy"} and not is_spread


def styled_curves(means: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield model, style of the line and name of each curve."""
    for model in dict.fromkeys(means["model"]):
        curves = dict.fromkeys(means[means["model"] == model]["curve"])
        for number, curve in enumerate(curves):
            yield model, ("o-", "s--", "D:", "^-.", "v-", "x--")[number % 6], curve


def points_of(means: pd.DataFrame, model: str, curve: str) -> pd.DataFrame:
    """Return the points of a curve in the order of their steps, in which they are joined."""
    own = (means["model"] == model) & (means["curve"] == curve)
    return pd.DataFrame(means[own]).sort_values("steps")


def draw(table: pd.DataFrame, path: Path, title: str) -> None:
    """Draw FID and the share recognised over time and FID over evaluations, as means over seeds."""
    scores = [name for name in table if is_drawn(str(name))]
    keys = ["model", "curve", "steps"]
    means = table.groupby(keys, sort=False)[["seconds", "evaluations", *scores]].mean()
    means = pd.DataFrame(means).reset_index().assign(ms=lambda found: 1000 * found["seconds"])
    names = {"ms": "ms for an image", "evaluations": "evaluations of the head for an image"}
    panels = [(x, score) for score in scores for x in names][:3]
    figure, axes = plt.subplots(1, len(panels), figsize=(6 * len(panels), 5), squeeze=False)
    models = list(dict.fromkeys(means["model"]))
    for axis, (x, score) in zip(axes[0], panels, strict=True):
        for model, style, curve in styled_curves(means):
            points = points_of(means, model, curve)
            colour = f"C{models.index(model)}"
            axis.plot(points[x], points[score], style, color=colour, markersize=4,
                      label=f"{model}, {curve}")  # fmt: skip
            for place in zip(points["steps"], points[x], points[score], strict=True):
                axis.annotate(str(place[0]), place[1:], xytext=(3, 3), fontsize=7,
                              textcoords="offset points", color=colour)  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("linear" if "accuracy" in score else "log")
        axis.set_xlabel(f"{names[x]} (beside each point: steps of a token)")
        axis.set_ylabel(score.replace("_", " "))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(LogFormatter())  # leaves numbers out where they are many
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(which="minor", labelsize=7)
        axis.grid(alpha=0.3, which="both")
    axes[0][-1].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=70)


def main() -> None:
    """Train, or measure what is missing; then write the table and draw the plot."""
    arguments = parse()
    if arguments.train is not None:
        train_models(arguments)
        return
    if arguments.draw is not None:
        draw(pd.read_csv(arguments.draw), arguments.draw.with_suffix(".png"), arguments.title)
        return
    rows = measure_all(arguments, arguments.out / "quality.json")
    if not rows:
        raise ValueError("--models, --curves, --steps: no model here has a row of that kind")
    table = pd.DataFrame(rows).drop(columns="sample")
    atomic.write_text(arguments.out / "quality.csv", table.to_csv(index=False))
    draw(table, arguments.out / "quality.png", arguments.title)


if __name__ == "__main__":
    main()
