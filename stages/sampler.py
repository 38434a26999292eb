"""Generate and edit images from Python, with the weights in `out/` or with released ones.

    from stages.sampler import load

    sampler = load("out")
    images = sampler.sample(["3", "7"], seed=1, guidance_scale=2.0)  # uint8, (B, H, W, 3)

docs/python.md has more. `python -m stages.generate` draws with the same code. An image depends on
the weights, the settings, its class and its place in the list of classes.

Shapes: B images, H W an image in pixels.
"""

import operator
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from mar.sampling import editing
from mar.sampling.blank import count_blank
from mar.sampling.config import SampleConfig, check_fit
from mar.sampling.images import generate_images, picture_so_far
from mar.sampling.labels import find_labels
from stages import params
from stages.image_batches import ImageBatches
from stages.runner import choose_device, usable_device
from stages.stage import autocast
from stages.weights import Weights, released_weights, trained_weights


SETTINGS = (
    "seed",
    "num_steps",
    "order",
    "guidance_scale",
    "guidance_schedule",
    "reconstruction_steps",
    "head",
)


@dataclass(frozen=True)
class Progress:
    """A generation after one of its steps.

    Attributes:
        images: Images done, with the share of those under way.
        indices: Those under way, by their places in the list of classes.
        num_known: Tokens known in each of them.
        picture: Decodes them (uint8, (B, 3, H, W)); what is not drawn yet is grey.
    """

    images: float
    indices: Sequence[int]
    num_known: int
    picture: Callable[[], Tensor]


OnStep = Callable[[Progress], None]


@dataclass(frozen=True)
class Edit:
    """Images of which a part is drawn again.

    Attributes:
        images: The originals.
        hidden: True for pixels to draw; a token is drawn if one of its pixels is.
    """

    images: UInt8[Tensor, "B 3 H W"]
    hidden: Bool[Tensor, "H W"]


@dataclass(frozen=True)
class Sampler:
    """A generator and its tokenizer on a device, ready to draw.

    Attributes:
        weights: What it draws with.
        device: Where.
    """

    weights: Weights
    device: torch.device

    @property
    def class_names(self) -> list[str]:
        """The name of each class, in the order of their numbers."""
        return self.weights.class_names

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.weights.image_size

    def sample(
        self, classes: Sequence[int | str], *, on_step: OnStep | None = None, **settings: Any
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Generate an image for each of the classes, which are names or numbers.

        Args:
            classes: Image i is of class `classes[i]`, and its noise comes from (seed, i).
            on_step: Is called after each generation step.
            settings: Keys of section `sample` (`SETTINGS`) with other values than `weights.sample`
                has; of `head`, those keys that differ.

        Raises:
            ValueError: a class or setting does not exist, or a value does not fit.

        Warns:
            UserWarning: images are blank (`mar.sampling.blank`).
        """
        labels, config = self.labels(classes), self.settings(**settings)
        return _to_arrays(self.generate(labels, config, on_step=on_step))

    def inpaint(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        hidden: Bool[np.ndarray, "H W"],
        classes: Sequence[int | str],
        *,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Draw a part of images again, as images of the classes; the rest is kept.

        What is kept passes through the tokenizer once.

        Args:
            images: The originals.
            hidden: True for pixels to draw; a token is drawn if one of its pixels is.
            classes: The class of each image.
            on_step: Is called after each generation step.
            settings: As in `sample`.

        Raises:
            ValueError: images, mask and classes do not fit together or to the model, or the model
                cannot see tokens that come later in its order.

        Warns:
            UserWarning: images are blank (`mar.sampling.blank`).
        """
        labels, config = self.labels(classes), self.settings(**settings)
        if len(images) != len(labels):
            raise ValueError(f"got {len(images)} images and {len(labels)} classes")
        edit = self.edit(images, hidden)
        return _to_arrays(self.generate(labels, config, edit=edit, on_step=on_step))

    def edit(self, images: UInt8[np.ndarray, "B H W 3"], hidden: Bool[np.ndarray, "H W"]) -> Edit:
        """Return what `generate` takes to keep images but for what is hidden.

        Raises:
            ValueError: images or mask are of another size or type.
        """
        size = self.image_size
        if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be uint8 of shape (B, {size}, {size}, 3), got "
                             f"{images.dtype} of shape {images.shape}")  # fmt: skip
        if hidden.dtype != np.bool_ or hidden.shape != (size, size):
            raise ValueError(f"hidden must be bool of shape ({size}, {size}), got {hidden.dtype} "
                             f"of shape {hidden.shape}")  # fmt: skip
        originals = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        return Edit(originals, torch.from_numpy(np.ascontiguousarray(hidden)))

    def labels(self, classes: Sequence[int | str]) -> Int[Tensor, " B"]:
        """Return the number of each class.

        Raises:
            ValueError: there is no such class, several have the name, or there are none.
        """
        is_list = isinstance(classes, Iterable) and not isinstance(classes, str)
        if not (listed := list(classes) if is_list else []):
            raise ValueError(f"classes must be a list of names or numbers, got {classes!r}")
        try:
            return torch.tensor(find_labels(list(map(_class, listed)), self.class_names))
        except ValueError as error:
            raise ValueError(f"classes: {error}") from None

    def settings(
        self, *, source: str = "settings", head: Mapping[str, Any] | None = None, **changes: Any
    ) -> SampleConfig:
        """Return `weights.sample` with some values changed.

        Args:
            source: Where the changes come from, for messages.
            head: Changed keys of `sample.head`.
            changes: Other changed keys of `sample`.

        Raises:
            ValueError: a key is unknown, or a value not allowed or not for this model.
        """
        fields: dict[str, Any] = self.weights.sample.model_dump()
        if not isinstance(head, Mapping | None):
            raise ValueError(f"{source}: sample.head must hold keys of its own, got {head!r}")
        for name, given, known in (
            ("sample", changes, SETTINGS),
            ("sample.head", head or {}, [key for key in fields["head"] if key != "kind"]),
        ):
            for key in given:
                if key not in known:
                    raise ValueError(f"{source}: {name} has {', '.join(known)}, and no "
                                     f"{key!r}{params.suggest(key, known)}")  # fmt: skip
        fields = {**fields, **changes, "head": {**fields["head"], **(head or {})}}
        config = params.parse("sample", fields, SampleConfig, Path(source))
        model = self.weights.mar
        check_fit(config, model.config, model.num_tokens)
        return config

    def generate(
        self,
        labels: Int[Tensor, " B"],
        config: SampleConfig,
        *,
        edit: Edit | None = None,
        on_step: OnStep | None = None,
    ) -> UInt8[Tensor, "B 3 H W"]:
        """Generate an image for each label, at most `MAR_SAMPLE_BATCH` of them at a time."""
        torch.set_float32_matmul_precision("high")  # as the stage sample does
        return ImageBatches("generate").make(
            torch.arange(len(labels)),
            lambda part: self._batch(part, labels, config, edit, on_step),
        )

    def _batch(
        self,
        part: Tensor,
        labels: Tensor,
        config: SampleConfig,
        edit: Edit | None,
        on_step: OnStep | None,
    ) -> Tensor:
        weights = self.weights
        mar, std = weights.mar, weights.latent_std
        known = None
        if edit is not None:
            known = editing.keep(
                mar, weights.tokenizer, edit.images[part], edit.hidden, latent_std=std
            )

        def on_tokens(tokens: Tensor, hidden: Tensor) -> None:
            if on_step is not None:
                picture = partial(
                    picture_so_far, mar, weights.tokenizer, tokens, hidden, latent_std=std
                )
                num_known = mar.num_tokens - hidden.shape[1]
                done = int(part[0]) + len(part) * num_known / mar.num_tokens
                on_step(Progress(done, part.tolist(), num_known, picture))

        return generate_images(
            mar,
            weights.tokenizer,
            labels[part],
            part.tolist(),
            config,
            latent_std=std,
            autocast=partial(autocast, self.device),
            known=known,
            on_tokens=on_tokens,
        )


def load(
    out: str | Path = "out",
    *,
    generator: str | Path | None = None,
    tokenizer: str | Path | None = None,
    ema: bool | None = None,
    device: torch.device | str | None = None,
) -> Sampler:
    """Load weights and put them on a device.

    Args:
        out: The outputs of a project in which the pipeline has run; its `params.yaml` beside them
            says how to sample.
        generator: Instead of them, a released generator (`checkpoint-last.pth`).
        tokenizer: And its released tokenizer (`kl16.ckpt`).
        ema: The weights averaged over the training, or the last ones; None is what `sample.weights`
            says, and of released files the average.
        device: By default that of `MAR_DEVICE`, else the first accelerator, else the CPU.

    Raises:
        ValueError: files are missing, damaged, or do not belong together, or nothing can be
            computed on the device.
    """
    if (generator is None) != (tokenizer is None):
        raise ValueError("a released generator and its tokenizer go together, got one of them")
    chosen = choose_device() if device is None else usable_device(str(device), "device")
    if generator is not None and tokenizer is not None:
        weights = released_weights(Path(generator), Path(tokenizer), ema is not False)
    else:
        weights = trained_weights(ema, Path(out))
    weights.mar.to(chosen)
    weights.tokenizer.to(chosen)
    return Sampler(weights, chosen)


def _class(given: Any) -> int | str:
    """Return a name or a number, which may be NumPy's.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(given, str | bool):  # of which the latter is refused as a name
        return given
    try:
        return operator.index(given)
    except TypeError:
        raise ValueError(f"{given!r} is neither the name of a class nor a whole number") from None


def _to_arrays(images: UInt8[Tensor, "B 3 H W"]) -> UInt8[np.ndarray, "B H W 3"]:
    """Return images as NumPy has them; warn the caller of `sample` or `inpaint` of blank ones."""
    if warning := count_blank(images).warning():
        warnings.warn(warning, stacklevel=3)
    return images.permute(0, 2, 3, 1).contiguous().numpy()
