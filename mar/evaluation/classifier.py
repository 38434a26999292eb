"""A small convolutional classifier: a feature extractor for images unlike Inception's photographs.

It is trained on the real training split. It has few features, because a covariance of 2,048
features, as the Frechet distance by Inception takes, cannot be estimated from 1,400 images.

Shapes: B batch, S side of an image in pixels, F features, K classes, C channels, h w resolution.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from mar.config import Config
from mar.data.images import to_float
from mar.files import weights
from mar.seeds import make_rng


SMALLEST = 4  # pixels: the resolution at which features are pooled
WARMUP = 0.1  # of all steps


class ClassifierConfig(Config):
    """A classifier and its training."""

    seed: int = Field(ge=0, description="seed of initial weights, batches and augmentation")
    width: int = Field(
        ge=1,
        le=65_536,
        description="channels at full resolution; they double with each of the first 3 halvings",
    )
    feature_width: int = Field(
        ge=2,
        le=65_536,
        description="features of an image; far fewer than images, for a precise covariance",
    )
    steps: int = Field(ge=1, description="optimiser steps")
    batch_size: int = Field(ge=2, description="images per step")
    lr: float = Field(gt=0, description="highest learning rate of AdamW")
    weight_decay: float = Field(ge=0, description="AdamW's, of matrices and kernels")
    shift: int = Field(
        ge=0, le=16_384, description="images move at random by up to this many pixels"
    )
    flip: bool = Field(description="mirror half of the images left to right; false for digits")
    noise: float = Field(
        ge=0,
        description="largest standard deviation of noise added in training, where white is 255; "
        "without noise, features respond to invisible differences",
    )


@dataclass(frozen=True)
class ClassifierStep:
    """What one step of training measured, on its batch before the update; detached tensors."""

    index: int
    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


class Outputs(NamedTuple):
    """Outputs of the classifier for a batch."""

    features: Float[Tensor, "B F"]
    logits: Float[Tensor, "B K"]


class Block(nn.Module):
    """Halve the resolution, double the channels, then one residual convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.halve = convolution(channels, out_channels, stride=2)
        self.refine = convolution(out_channels, out_channels, stride=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B _ _ _"]:
        """Return (B, out_channels, h / 2, w / 2), rounded up."""
        x = self.halve(x)  # (B, 2 C, h / 2, w / 2)
        return x + self.refine(x)


class Classifier(nn.Module):
    """Features and logits of square RGB images of any size."""

    def __init__(self, config: ClassifierConfig, *, image_size: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.image_size = image_size
        self.num_classes = num_classes
        halvings = max(0, math.ceil(math.log2(image_size / SMALLEST)))
        widths = [config.width * 2 ** min(n, 3) for n in range(halvings + 1)]  # 8 * width at most
        self.stem = convolution(3, config.width, stride=1)
        self.blocks = nn.Sequential(*map(Block, widths[:-1], widths[1:]))
        self.project = convolution(widths[-1], config.feature_width, stride=1)
        self.head = nn.Linear(config.feature_width, num_classes)

    def initialize(self, rng: torch.Generator) -> None:
        """Set every weight: kernels after He et al. (2015), a small head, norms to the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=rng)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        nn.init.normal_(self.head.weight, std=0.01, generator=rng)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: UInt8[Tensor, "B 3 S S"]) -> Outputs:
        """Return features and logits of 8-bit images."""
        return self.classify(to_float(images))

    def classify(self, x: Float[Tensor, "B 3 S S"]) -> Outputs:
        """Return features and logits of images in [-1, 1]."""
        x = self.project(self.blocks(self.stem(x)))  # (B, F, h, w)
        features = x.mean(dim=(2, 3))  # (B, F)
        return Outputs(features, self.head(features))


def convolution(channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """Return a 3x3 convolution, its norm and a GELU."""
    kernel = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(kernel, nn.BatchNorm2d(out_channels), nn.GELU())


def augment(
    x: Float[Tensor, "B 3 S S"],
    rng: torch.Generator,
    *,
    shift: int,
    flip: bool,
    noise: float,
) -> Float[Tensor, "B 3 S S"]:
    """Shift each image by up to `shift` pixels, repeating the edges, and add normal noise.

    Its standard deviation is drawn for each image, from 0 to `noise`. `flip` mirrors half of the
    images.
    """
    batch, _, size, _ = x.shape
    offsets = torch.randint(2 * shift + 1, (2, batch, 1), generator=rng)
    mirrored = torch.rand(batch, 1, generator=rng) < 0.5
    rows, columns = offsets + torch.arange(size)  # (B, S) each
    if flip:
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = functional.pad(x, (shift, shift, shift, shift), mode="replicate")
    padded = padded.permute(0, 2, 3, 1)  # (B, S + 2 shift, S + 2 shift, 3)
    sample = torch.arange(batch)[:, None, None]
    moved = padded[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    strength = noise * torch.rand(batch, 1, 1, 1, generator=rng)
    return moved + (strength * torch.randn(moved.shape, generator=rng)).to(x.device)


def new_classifier(config: ClassifierConfig, *, image_size: int, num_classes: int) -> Classifier:
    """Return a classifier with the initial weights of the config's seed."""
    model = Classifier(config, image_size=image_size, num_classes=num_classes)
    model.initialize(make_rng("classifier", config.seed))
    return model


def train_classifier(
    model: Classifier, batches: Iterator[tuple[UInt8[Tensor, "B 3 S S"], Int[Tensor, " B"]]]
) -> Iterator[ClassifierStep]:
    """Train by cross entropy and yield after every step; the model ends in evaluation mode.

    The augmentation depends on the seed alone, not on the device.
    """
    config = model.config
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=config.lr)
    model.train()
    for index in range(config.steps):
        images, labels = next(batches)
        x = to_float(images.to(model.head.weight.device))
        x = augment(
            x,
            make_rng("augment", config.seed, index),
            shift=config.shift,
            flip=config.flip,
            noise=config.noise / 127.5,  # white is 255 there and, from -1 on, 2 here
        )
        logits = model.classify(x).logits
        labels = labels.to(logits.device)
        loss = functional.cross_entropy(logits, labels)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * lr_factor(index, config.steps)
        optimizer.zero_grad()
        loss.backward()  # pyright: ignore[reportUnknownMemberType]
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        accuracy = (logits.detach().argmax(dim=1) == labels).float().mean()
        if index + 1 == config.steps:
            model.eval()
        yield ClassifierStep(index, loss.detach(), accuracy)


def lr_factor(step: int, steps: int) -> float:
    """Return the share of the peak learning rate: linear warm-up, then half a cosine to 0."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup + 1) / (steps - warmup + 1))


def parameter_groups(model: Classifier) -> list[dict[str, object]]:
    """Return AdamW's groups: matrices and kernels decay, biases and norms do not."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": decayed, "weight_decay": model.config.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def save_classifier(path: Path, model: Classifier) -> None:
    """Write weights, with what is needed to build the model again."""
    description = {
        "config": model.config.model_dump(),
        "image_size": model.image_size,
        "num_classes": model.num_classes,
    }
    weights.save(path, model, description)


def load_classifier(path: Path) -> Classifier:
    """Build a classifier from its file, in evaluation mode.

    Raises:
        ValueError: the file is missing, damaged or of something else.
    """
    tensors, description = weights.load(path)
    if description.keys() != {"config", "image_size", "num_classes"}:
        raise ValueError(f"{path} does not hold a classifier")
    try:
        config = ClassifierConfig.model_validate(description.pop("config"))
    except ValueError as error:
        raise ValueError(f"{path} holds a classifier of another version: {error}") from None
    model = Classifier(config, **description)
    weights.load_into(model, tensors, path)
    return model.eval()
