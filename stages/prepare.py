"""List and check the images, and split them."""

import sys

import pandas as pd

from mar.data.manifest import write_manifest
from mar.files.atomic import write_json, write_text
from mar.sources.folder_entries import show
from mar.sources.registry import DataConfig
from mar.sources.source import Collection, Surroundings
from stages.stage import Stage, read_count, run


MAX_PIXELS = 178_956_970  # Pillow's limit: of more, it takes a file for an attack
NAMED = 3  # classes


def main(stage: Stage) -> None:
    """Write the manifest, the class names and the list of files that cannot be decoded.

    DVC runs this every time, as it cannot know whether a folder of images has changed. What is
    known of the files is kept, so only new and changed ones are read, and the same images give
    the same manifest, after which nothing else runs.
    """
    config = stage.params("data", DataConfig)
    surroundings = Surroundings(
        base=stage.root,
        workers=stage.workers,
        max_pixels=read_count("MAR_MAX_PIXELS", MAX_PIXELS, least=1),
        kept=stage.root / "work" / "checked_images",
    )
    collection = config.collect(surroundings)
    if collection.num_known:
        sys.stderr.write(f"{stage.name}: {collection.num_known} files are as they were when read\n")
    for text in (*collection.remarks, *(f"warning: {text}" for text in collection.warnings)):
        sys.stderr.write(f"{stage.name}: {text}\n")
    write_manifest(stage.out / "manifest.parquet", collection.class_names, collection.rows)
    write_json(stage.out / "classes.json", collection.class_names)
    unreadable = pd.DataFrame(collection.unreadable.items(), columns=["path", "reason"])
    write_text(stage.out / "unreadable.csv", unreadable.to_csv(index=False))
    stage.write_metrics(
        {
            "num_train": collection.count("train"),
            "num_held_out": collection.count("held_out"),
            "num_classes": len(collection.class_names),
            "num_unreadable": len(collection.unreadable),
        }
    )
    sys.stderr.write(f"{stage.name}: {_summary(collection)}\n")


def _summary(collection: Collection) -> str:
    count, held_out = len(collection.rows), collection.count("held_out")
    if collection.rows.captions() is not None:
        return f"{count} images with captions, {held_out} held out"
    names = collection.class_names
    classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
    named = ", ".join(show(name) for name in names[:NAMED])
    return f"{count} images, {classes}, e.g. {named}, {held_out} held out"


if __name__ == "__main__":
    run(main)
