"""Feature extractors, whose features the scores compare; all through torch-fidelity.

Shapes: B images, S their side in pixels, F features, K classes.
"""
# torch-fidelity has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import hashlib
import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch_fidelity import (
    FeatureExtractorBase,
    FeatureExtractorDinoV2,
    FeatureExtractorInceptionV3,
    register_feature_extractor,
)
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from tqdm import tqdm

from mar.config import Config, PathText, Sha256
from mar.data.workers import map_chunks, ranges
from mar.evaluation.classifier import Classifier, ClassifierConfig, load_classifier
from mar.files import downloads


CLASSIFIER = "mar-classifier"  # its name among torch-fidelity's extractors
INCEPTION = "inception-v3-compat"  # TensorFlow's weights of 2015, which all published FIDs use
INCEPTION_FILE = downloads.PublishedFile(URL_INCEPTION_V3, hash_prefix="6726825d")  # in its name
BATCH = 64  # images; torch-fidelity's default

# "untrained" is the classifier of images of one class, which has nothing to learn.
Kind = Literal["classifier", "untrained", "inception", "dinov2"]


class ClassifierReference(Config):
    """Compare by the features of a classifier trained on the real training split."""

    extractor: Literal["classifier"] = Field(description="a small network of our own")
    num_features: int = Field(
        ge=2, description="real images whose features are kept for KID, precision and recall"
    )
    classifier: ClassifierConfig = Field(description="the network and its training")


class InceptionReference(Config):
    """Compare by the features of Inception v3, as published numbers do."""

    extractor: Literal["inception"] = Field(description="Inception v3 of 2015")
    num_features: int = Field(
        ge=2, description="real images whose features are kept for KID, precision and recall"
    )
    weights: PathText | None = Field(
        description="torch-fidelity's weight file, absolute or relative to the repository; null "
        "uses an earlier download, or downloads it"
    )
    weights_sha256: Sha256 | None = Field(description="the file's SHA-256; null skips the check")
    statistics: PathText | None = Field(
        description="an .npz with mu, sigma and perhaps images (arr_0), as ADM publishes them, "
        "absolute or relative to the repository; null measures the training split"
    )
    statistics_sha256: Sha256 | None = Field(description="the file's SHA-256; null skips the check")


class DinoReference(Config):
    """Compare by the features of DINOv2, which agree better with people (Stein et al., 2023)."""

    extractor: Literal["dinov2"] = Field(description="DINOv2, downloaded by torch.hub")
    num_features: int = Field(
        ge=2, description="real images whose features are kept for KID, precision and recall"
    )
    size: Literal["s", "b", "l", "g"] = Field(
        description="size of the network; FD-DINOv2 is measured with l"
    )


ReferenceConfig = Annotated[
    ClassifierReference | InceptionReference | DinoReference, Field(discriminator="extractor")
]


class Features(NamedTuple):
    """Outputs of an extractor; logits only if it has classes."""

    features: Float[Tensor, "B F"]
    logits: Float[Tensor, "B K"] | None


@runtime_checkable
class Images(Protocol):
    """A set of images of one size."""

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        ...

    def __len__(self) -> int: ...

    def stack(self, indices: list[int]) -> UInt8[Tensor, "B 3 S S"]:
        """Return some of the images as one tensor."""
        ...


@dataclass(frozen=True)
class Extractor:
    """A feature extractor.

    Attributes:
        kind: Which one; the names of the scores depend on it.
        module: Takes uint8 images and returns features and, where it has them, logits.
    """

    kind: Kind
    module: nn.Module

    def digest(self) -> str:
        """Return the SHA-256 of all weights, in hexadecimal."""
        return digest_tensors(self.module.state_dict())


class ClassifierExtractor(FeatureExtractorBase):
    """Our classifier behind torch-fidelity's interface."""

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str | Path,
        **kwargs: object,
    ) -> None:
        super().__init__(name, features_list)
        self.model: Classifier = load_classifier(Path(feature_extractor_weights_path))

    def forward(self, input: UInt8[Tensor, "B 3 S S"]) -> tuple[Tensor, ...]:
        """Return the outputs named in `features_list`, in that order."""
        outputs = self.model(input)._asdict()
        return tuple(outputs[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, str]:
        """Return the names of all outputs."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Return the output that a score is computed from."""
        return {"isc": "logits", "fid": "features", "kid": "features", "prc": "features"}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        """Return False: it is too small to profit."""
        return False


register_feature_extractor(CLASSIFIER, ClassifierExtractor)


def one_class_warning(config: ReferenceConfig, num_classes: int) -> str | None:
    """Return a warning if the classifier would have nothing to learn, else nothing."""
    if num_classes > 1 or not isinstance(config, ClassifierReference):
        return None
    return (
        "reference.extractor: 'classifier' cannot be trained on images of a single class, so its "
        "features are those of random weights, and scores are called untrained_fid, untrained_kid "
        "and so on; 'inception' and 'dinov2' need no classes"
    )


def load(config: ReferenceConfig, folder: Path, *, base: Path = Path()) -> Extractor:
    """Return the extractor of a config, in evaluation mode.

    Args:
        config: Which extractor.
        folder: Holds `classifier.safetensors` if the extractor is our classifier.
        base: The folder that a relative path of a weight file starts from.

    Raises:
        ValueError: a file is missing or not what it should be, or a download fails.
    """
    kind: Kind = config.extractor
    match config:
        case ClassifierReference():
            path = folder / "classifier.safetensors"
            module = ClassifierExtractor(CLASSIFIER, ["features", "logits"], path)
            kind = "classifier" if module.model.num_classes > 1 else "untrained"
        case InceptionReference():
            path = downloads.locate(
                config.weights,
                config.weights_sha256,
                INCEPTION_FILE,
                key="reference.weights",
                base=base,
            )
            module = _inception(path)
        case DinoReference():
            module = _dinov2(f"dinov2-vit-{config.size}-14")
    return Extractor(kind, module.requires_grad_(False).eval())


def extract(
    extractor: Extractor, images: Images, *, name: str, device: torch.device, workers: int
) -> Iterator[Features]:
    """Move the extractor to a device; yield its outputs for the images, in batches, on the CPU.

    Args:
        extractor: The network.
        images: The images.
        name: What they are called on the progress bar.
        device: Where the network works.
        workers: Processes that read images.

    Raises:
        ValueError: features are not finite.
    """
    extractor.module.to(device)
    chunks = ranges(len(images), BATCH)
    batches = map_chunks(images.stack, chunks, workers)
    progress = tqdm(chunks, desc=f"features of the {name}", unit="batch")
    for chunk, batch in zip(progress, batches, strict=True):
        yield extract_batch(extractor, batch, device=device, first=chunk[0])


@torch.no_grad()
def extract_batch(
    extractor: Extractor, images: UInt8[Tensor, "B 3 S S"], *, device: torch.device, first: int
) -> Features:
    """Return an extractor's outputs for images, on the CPU.

    In full float32: on a GPU, torch would round the inputs of convolutions to 10 bits (TF32).

    Args:
        extractor: The network.
        images: The images.
        device: Where the network is.
        first: Number of the first image, for the message.

    Raises:
        ValueError: features are not finite.
    """
    exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with exact:
        features, *logits = (output.cpu() for output in extractor.module(images.to(device)))
    if not features.isfinite().all():
        raise ValueError(
            f"the extractor {extractor.kind} returned nan or infinity for images from {first} on"
        )
    return Features(features, logits[0] if logits else None)


def gather(batches: Iterable[Features]) -> Features:
    """Join batches into one."""
    features, logits = zip(*batches, strict=True)
    known = [part for part in logits if part is not None]
    return Features(torch.cat(features), torch.cat(known) if known else None)


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors, in hexadecimal; their order does not matter."""
    content = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        content.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def _inception(path: Path) -> FeatureExtractorBase:
    """Load Inception, after checking that its file holds tensors only.

    torch-fidelity's own loader would execute code in a malicious file.
    """
    try:
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        return FeatureExtractorInceptionV3(INCEPTION, ["2048", "logits_unbiased"], str(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"reference.weights: {path} does not hold torch-fidelity's Inception weights: {reason}"
        ) from None


def _dinov2(name: str) -> FeatureExtractorBase:
    try:
        return FeatureExtractorDinoV2(name, ["dinov2"])
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"reference.extractor: torch.hub cannot download facebookresearch/dinov2 ({error}), "
            f"and there is no earlier download in {torch.hub.get_dir()}"
        ) from None
