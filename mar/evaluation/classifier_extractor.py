"""The feature extractor `classifier`: a small network, trained on the real training split.

Shapes: B images, S their side in pixels.
"""
# torch-fidelity has no types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from pathlib import Path
from typing import Literal

from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor
from torch_fidelity import FeatureExtractorBase, register_feature_extractor

from mar.evaluation.classifier import Classifier, ClassifierConfig, load_classifier
from mar.evaluation.extractors import Extractor, ReferenceSection
from mar.evaluation.score_names import ScoreNames


NAME = "mar-classifier"  # among torch-fidelity's extractors
SCORES = {
    "classifier": ScoreNames(
        fid="classifier_fid",
        kid="classifier_kid",
        mmd="classifier_mmd",
        precision="classifier_precision",
        recall="classifier_recall",
        rfid="classifier_rfid",
        inception_score="classifier_is",
        accuracy="classifier_accuracy",
    ),
    # Of a single class there is nothing to learn, and the Inception score is always 1.
    "untrained": ScoreNames(
        fid="untrained_fid",
        kid="untrained_kid",
        mmd="untrained_mmd",
        precision="untrained_precision",
        recall="untrained_recall",
        rfid="untrained_rfid",
    ),
}


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


register_feature_extractor(NAME, ClassifierExtractor)


class ClassifierReference(ReferenceSection):
    """Compare by the features of a classifier trained on the real training split."""

    extractor: Literal["classifier"] = Field(description="a small network of our own")
    classifier: ClassifierConfig = Field(description="the network and its training")

    def load(self, folder: Path, *, base: Path = Path()) -> Extractor:
        """Return the classifier that the stage `reference` trained."""
        path = folder / "classifier.safetensors"
        module = ClassifierExtractor(NAME, ["features", "logits"], path)
        kind = "classifier" if module.model.num_classes > 1 else "untrained"
        return Extractor(kind, module.requires_grad_(False).eval(), SCORES[kind])

    def one_class_warning(self, num_classes: int) -> str | None:
        """Return a warning if there is a single class, of which nothing can be learned."""
        if num_classes > 1:
            return None
        return (
            "reference.extractor: 'classifier' cannot be trained on images of a single class, so "
            "its features are those of random weights, and scores are called untrained_fid, "
            "untrained_kid and so on; 'inception' and 'dinov2' need no classes"
        )
