"""The images that `prepare` listed, as the stages after it open them."""

from pathlib import Path

from mar.data.dataset import ImageSet
from mar.data.manifest import Split
from stages import params
from stages.stage import Stage


def open_images(stage: Stage, manifest: Path, split: Split, image_size: int) -> ImageSet:
    """Open one split of the images.

    `data.path` is read here and is no parameter that `dvc.yaml` lists for the stages after
    `prepare`: every image is compared with its digest in the manifest, so where the folder lies
    cannot change a result, and data can be moved without training again.
    """
    folder = Path(params.find(params.read(), "data.path") or "").expanduser()
    return ImageSet(manifest, split, image_size, root=stage.root / folder)
