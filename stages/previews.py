"""Pictures of a training along the way, and reports with their source, for people.

They change nothing that a stage makes.
"""

import os
from pathlib import Path

import torch
from PIL import Image

from mar.data.class_names import read_class_names
from mar.data.dataset import ImageSet
from mar.evaluation.image_grid import captioned_grid, comparison_grid, save_png
from mar.files import atomic
from mar.latents.info import LatentsInfo
from mar.model.mar import MAR
from mar.sampling.config import SampleConfig
from mar.sampling.images import generate_images
from mar.sampling.labels import balanced_labels, resolve_labels
from mar.tokenizers.codec import reconstruct
from mar.tokenizers.interface import Tokenizer
from mar.tokenizers.registry import load_tokenizer
from stages import changes, git, params, pipeline_run, prompts
from stages.report import Report, facts
from stages.stage import Stage, root
from stages.tables import Table
from stages.tracking import source_tags


TOKENIZER = Path("out/train_tokenizer/tokenizer.safetensors")
CLASSES = Path("out/prepare/classes.json")
ENCODER = Path("out/encode_text/encoder.json")
TEXTS = Path("out/encode_text/texts")
SHOWN = 10  # images in a row


def reconstructions(stage: Stage, *, tokenizer: Tokenizer, images: ImageSet, step: int) -> None:
    """Draw held-out images above their reconstructions."""
    originals = images.spread(SHOWN)
    rows = {"originals": originals, f"step {step}": reconstruct(tokenizer, originals)}
    _keep(stage, comparison_grid(rows), step)


def samples(stage: Stage, *, model: MAR, info: LatentsInfo, step: int) -> None:
    """Draw samples of the averaged weights, as section `sample` says; the same noise every time."""
    config = params.load("sample", SampleConfig)
    decoder = load_tokenizer(TOKENIZER).to(stage.device)
    assert atomic.digest(TOKENIZER) == info.tokenizer
    shown = 2 * SHOWN
    if model.text is None:
        names = read_class_names(CLASSES)
        given = balanced_labels(shown, resolve_labels(config.labels, names), model.num_classes)
        titles = [names[label] for label in given.tolist()]
    else:
        found = prompts.load(config, shown, model, ENCODER, TEXTS, base=root(), device=stage.device)
        titles, given = found.texts, found.given(torch.arange(shown))
    place = next(model.parameters()).device  # the CPU, if its weights are spread over processes
    try:
        images = generate_images(
            model.to(stage.device),
            decoder,
            given,
            range(shown),
            config,
            latent_std=info.latent_std,
            autocast=stage.autocast,
        )
    finally:
        model.to(place)
    _keep(stage, captioned_grid(images, titles, columns=SHOWN, lines=3), step)


def folder(stage: Stage) -> Path:
    """Return where pictures of a stage lie: tracked by neither git nor DVC, as they are no output.

    They depend on more than the stage declares (section `sample`, which images are here).
    """
    return root() / "work" / "previews" / stage.name


def _keep(stage: Stage, picture: Image.Image, step: int) -> None:
    path = folder(stage) / f"step-{step:07d}.png"
    save_png(path, picture)
    stage.run.step_picture(path, "previews", step)


def report(stage: Stage, *, page: Report) -> None:
    """Write a report that also tells where it comes from, and log it."""
    changed = pipeline_run.difference()
    source = {
        "commit": git.run("rev-parse", "HEAD") or "unknown",
        "other code than that commit": "yes" if source_tags().get("git.dirty") == "true" else "no",
        "DVC experiment": os.environ.get("DVC_EXP_NAME", "none"),
        "pipeline in MLflow": os.environ.get("MAR_PIPELINE", "none"),
    }
    differing = [(key, changes.show(value, 200)) for key, value in (changed or {}).items()]
    note = "" if differing else "None, or the committed ones are not known."
    path = root() / "work" / "reports" / f"{stage.name}.html"
    tables = [
        Table("Where it comes from", facts(source)),
        Table("Parameters that differ from the committed ones", differing, note),
    ]
    atomic.write_text(path, page.with_tables(tables).html())
    stage.run.document(path)
