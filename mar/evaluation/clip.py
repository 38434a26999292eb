"""CLIP (Radford et al., arXiv 2103.00020): directions of images and texts, and CLIPScore.

CLIPScore here is 100 max(cos, 0) of an image and its prompt, averaged over images, as torchmetrics
defines it; Hessel et al. (arXiv 2104.08718) have 2.5 max(cos, 0), of ViT-B/32. It depends on the
model, so no score is told without its name. torchmetrics 1.9 is not used: it reads no local folder,
takes the output of `transformers` 5 for a tensor, and cuts the end mark off long prompts.

Shapes: B images or texts, E channels of an embedding, H W an image.
"""
# transformers is typed in part:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from mar.evaluation.pretrained import digest, load_model, load_processor
from mar.evaluation.uncertainty import mean_of_groups


BATCH = 64  # images or texts at a time


class Clip:
    """A model of CLIP and what prepares images and texts for it."""

    def __init__(self, folder: Path, device: torch.device, *, key: str) -> None:
        """Read a folder; `key` of `params.yaml` names it in messages.

        Raises:
            ValueError: it cannot be read, or is not of CLIP.
        """
        self._model: Any = load_model("CLIPModel", folder, key=key).to(device)
        self._images: Any = load_processor("CLIPImageProcessor", folder, key=key)
        self._tokenizer: Any = load_processor("AutoTokenizer", folder, key=key)
        self._device = device
        self.name, self.sha256 = folder.name, digest(folder)

    @property
    def max_tokens(self) -> int:
        """The most tokens of a text, with its begin and its end: 77 of the published models."""
        return int(self._model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def images(self, images: Sequence[UInt8[Tensor, "3 _ _"]]) -> Float[Tensor, "B E"]:
        """Return the direction of each image, a vector of length 1; they may differ in size."""
        parts: list[Tensor] = []
        for start in range(0, len(images), BATCH):
            batch = [image.cpu() for image in images[start : start + BATCH]]
            pixels = self._images(images=batch, return_tensors="pt")["pixel_values"]
            found = self._model.get_image_features(pixel_values=pixels.to(self._device))
            parts.append(functional.normalize(found.pooler_output.float(), dim=-1))
        return torch.cat(parts)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "B E"]:
        """Return the direction of each text, cut at `max_tokens`."""
        parts: list[Tensor] = []
        for start in range(0, len(texts), BATCH):
            given = self._tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            ).to(self._device)
            found = self._model.get_text_features(
                input_ids=given["input_ids"], attention_mask=given["attention_mask"]
            )
            parts.append(functional.normalize(found.pooler_output.float(), dim=-1))
        return torch.cat(parts)

    def count_cut(self, texts: Sequence[str]) -> int:
        """Return how many texts have more tokens than are read."""
        numbers = self._tokenizer(list(texts), verbose=False)["input_ids"]
        return sum(len(each) > self.max_tokens for each in numbers)


class ClipScore(NamedTuple):
    """CLIPScore of images.

    Attributes:
        value: The mean of 100 max(cos, 0).
        error: Its standard error over prompts; None where there is but one.
        num_cut: Prompts of which the model did not read all.
    """

    value: float
    error: float | None
    num_cut: int


class ClipScorer:
    """Adds up CLIPScore, a batch at a time."""

    def __init__(self, clip: Clip, prompts: Sequence[str]) -> None:
        """Begin with all prompts, of which each is read once."""
        different = list(dict.fromkeys(prompts))
        self._clip = clip
        self._num_cut = clip.count_cut(different)
        self._texts = dict(zip(different, clip.texts(different), strict=True))
        self._scores: dict[str, list[float]] = {text: [] for text in different}

    def update(self, images: UInt8[Tensor, "B 3 H W"], prompts: Sequence[str]) -> None:
        """Add images, each with its prompt."""
        wanted = torch.stack([self._texts[text] for text in prompts])  # (B, E)
        cosines = (self._clip.images(list(images)) * wanted).sum(dim=1)  # (B,)
        for text, cosine in zip(prompts, cosines, strict=True):
            self._scores[text].append(100 * max(float(cosine), 0.0))

    def compute(self) -> ClipScore:
        """Return the score of all images."""
        return ClipScore(*mean_of_groups(list(self._scores.values())), self._num_cut)
