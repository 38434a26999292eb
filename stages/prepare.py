"""List and check the images, and split them."""

import sys

import pandas as pd

from mar.data.config import DataConfig
from mar.data.image_folder import EXTENSIONS
from mar.data.manifest import write_manifest
from mar.data.sources import collect, describe
from mar.files.atomic import write_json, write_text
from stages.stage import Stage, run


def main(stage: Stage) -> None:
    """Write the manifest, the class names and the list of files that cannot be decoded."""
    config = stage.params("data", DataConfig)
    collection = collect(config, stage.workers, stage.root)
    if collection.unreadable:
        total = len(collection.rows) + len(collection.unreadable)
        sys.stderr.write(
            f"left out {len(collection.unreadable)} of {total} files that cannot be decoded:\n"
            f"{describe(collection.unreadable)}\n"
        )
    if collection.ignored:
        sys.stderr.write(
            f"ignored {len(collection.ignored)} file(s) that are no images by their names, as "
            f"{collection.ignored[0]}; images end in {', '.join(EXTENSIONS)}\n"
        )
    write_manifest(stage.out / "manifest.parquet", collection.info, collection.rows)
    write_json(stage.out / "classes.json", collection.info.class_names)
    unreadable = pd.DataFrame(collection.unreadable.items(), columns=["path", "reason"])
    write_text(stage.out / "unreadable.csv", unreadable.to_csv(index=False))
    stage.write_metrics(
        {
            "num_train": collection.count("train"),
            "num_held_out": collection.count("held_out"),
            "num_classes": len(collection.info.class_names),
            "num_unreadable": len(collection.unreadable),
        }
    )


if __name__ == "__main__":
    run(main)
