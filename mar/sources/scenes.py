"""The data source `scenes`: coloured handwritten digits in places, with captions, for small tests.

See `mar.scenes` for what they show.

Shapes: S side of an image.
"""

import hashlib
import io
from typing import Literal

from jaxtyping import UInt8
from PIL import Image
from pydantic import Field
from torch import Tensor

from mar.data.manifest import Row, Rows, Split
from mar.scenes.digits import split_digits
from mar.scenes.grammar import Task, draw_scene, unseen_pairs
from mar.scenes.render import LARGEST, SMALLEST, render
from mar.seeds import make_rng
from mar.sources.caption_report import caption_remarks
from mar.sources.source import Collection, DataSource, Surroundings


class ScenesData(DataSource):
    """Scenes of coloured digits with captions, built in."""

    source: Literal["scenes"] = Field(description="coloured digits in places, built in")
    image_size: int = Field(
        ge=SMALLEST,
        le=LARGEST,
        multiple_of=2,
        description="side of the images, which have 2 x 2 cells: digits fill them at 16 pixels, "
        "and lie at random places in them at 24",
    )
    tasks: list[Task] = Field(
        min_length=1,
        description="GenEval's tasks whose captions there are, all equally often; one that is "
        "named twice is so twice as often among the scenes to train on",
    )
    whole_captions: bool = Field(
        description="whether scenes of position and color_attr have a second caption, which says "
        "colours and places both; prompts are the first captions"
    )
    reading_order: float = Field(
        ge=0.5,
        lt=1,
        description="of training captions with two objects, the share that names them in the order "
        "in which one reads, row by row (with a relation, those that say 'left of' or 'above'): "
        "from 0.5, as in prompts, to below 1, as 'right of' and 'below' must occur too",
    )
    num_train: int = Field(ge=1, description="scenes to train on")
    num_held_out: int = Field(ge=1, description="scenes of other digits, which are held out")
    seed: int = Field(ge=0, description="chooses digits, colours and places")

    @property
    def has_captions(self) -> bool:
        """All images have captions."""
        return True

    def collect(self, surroundings: Surroundings) -> Collection:
        """Return the scenes as PNG files within the rows."""
        train, held_out = split_digits()
        absent = {"train": unseen_pairs(), "held_out": set[tuple[int, str]]()}
        rows: list[Row] = []
        splits: dict[Split, int] = {"train": self.num_train, "held_out": self.num_held_out}
        for split, count in splits.items():
            digits = held_out if split == "held_out" else train
            tasks = self.tasks if split == "train" else list(dict.fromkeys(self.tasks))
            for index in range(count):
                rng = make_rng("scene", self.seed, split, index)
                scene = draw_scene(
                    tasks[index % len(tasks)],
                    absent[split],
                    rng,
                    reading_order=self.reading_order if split == "train" else 0.5,
                )
                content = _png(render(scene, *digits, rng, side=self.image_size))
                sha256 = hashlib.sha256(content).digest()
                path = f"scenes/{split}/{index:06d}"
                captions = scene.captions if self.whole_captions else scene.captions[:1]
                row = Row(path, content, 0, len(content), sha256, split, captions=captions)
                rows.append(row)
        collected = Rows.collect(rows)
        return Collection(["scene"], collected, remarks=caption_remarks(collected))


def _png(image: UInt8[Tensor, "S S 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    return file.getvalue()
