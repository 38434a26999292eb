"""Generate and edit images from Python, with the weights in `out/` or with released ones.

    from stages.sampler import load

    sampler = load("out")
    images = sampler.sample(["3", "7"], seed=1, guidance_scale=2.0)  # uint8, (B, H, W, 3)

A generator that takes texts draws `sampler.sample(prompts=["a red seven"])`. docs/python.md has
more. `python -m stages.generate` draws with the same code. An image depends on the weights, the
settings, its class or prompt, and its place in the list of them.

Shapes: B images, H W an image in pixels.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Shaped, UInt8
from torch import Tensor

from mar.sampling import editing
from mar.sampling.blank import count_blank
from mar.sampling.config import SampleConfig, check_fit
from mar.sampling.images import generate_images, picture_so_far
from mar.sampling.memory import count_memory
from stages import conditions, params
from stages.conditions import Given
from stages.exported import exported_weights
from stages.image_batches import ImageBatches, choose_size
from stages.runner import choose_device, usable_device
from stages.stage import autocast
from stages.weights import Weights, released_weights, trained_weights


ARGUMENTS = ("classes", "prompts", "on_step")  # of `Sampler.sample`, beside its settings
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
        indices: Those under way, by their places in the list of classes or prompts.
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
        """The name of each class, in the order of their numbers; none if it takes prompts."""
        return self.weights.class_names if self.weights.texts is None else []

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return self.weights.image_size

    def sample(
        self,
        classes: Sequence[int | str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Generate an image for each class, by name or number, or for each prompt.

        Args:
            classes: Image i is of class `classes[i]`, and its noise comes from (seed, i).
            prompts: Instead of them, where the generator takes texts.
            on_step: Is called after each generation step.
            settings: Keys of section `sample` (`SETTINGS`) with other values than `weights.sample`
                has; of `head`, those keys that differ.

        Raises:
            ValueError: the generator takes the other of classes and prompts, a class or setting
                does not exist, a value does not fit, or nothing is left of a prompt.

        Warns:
            UserWarning: images are blank (`mar.sampling.blank`), words are left out, or prompts cut
                (`mar.text.prompts`).
        """
        config, given = self.settings(**settings), self.given(classes, prompts)
        return _to_arrays(self.generate(given.tokens, config, on_step=on_step), given.remarks)

    def inpaint(
        self,
        images: UInt8[np.ndarray, "B H W 3"],
        hidden: Bool[np.ndarray, "H W"],
        classes: Sequence[int | str] | None = None,
        *,
        prompts: Sequence[str] | None = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> UInt8[np.ndarray, "B H W 3"]:
        """Draw a part of images again, as images of the classes or prompts; the rest is kept.

        What is kept passes through the tokenizer once.

        Args:
            images: The originals.
            hidden: True for pixels to draw; a token is drawn if one of its pixels is.
            classes: The class of each image.
            prompts: Instead of them, where the generator takes texts.
            on_step: Is called after each generation step.
            settings: As in `sample`.

        Raises:
            ValueError: as in `sample`; or images and mask do not fit together or to the model, or
                the model cannot see tokens that come later in its order.

        Warns:
            UserWarning: as in `sample`.
        """
        config, given = self.settings(**settings), self.given(classes, prompts)
        if len(images) != len(given.names):
            kind = "classes" if prompts is None else "prompts"
            raise ValueError(f"got {len(images)} images and {len(given.names)} {kind}")
        edit = self.edit(images, hidden)
        made = self.generate(given.tokens, config, edit=edit, on_step=on_step)
        return _to_arrays(made, given.remarks)

    def given(
        self, classes: Sequence[int | str] | None = None, prompts: Sequence[str] | None = None
    ) -> Given:
        """Return classes or prompts as `generate` takes them.

        Raises:
            ValueError: both or neither are given, or what `stages.conditions` raises of them.
        """
        takes = "classes" if self.weights.texts is None else "prompts"
        name = "classes" if prompts is None else "prompts"
        try:
            if prompts is None and classes is not None:
                return conditions.of_classes(self.weights, classes)
            if prompts is not None and classes is None:
                return conditions.of_prompts(self.weights, prompts)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        got = "neither" if classes is None else "both"
        raise ValueError(f"expected {takes}, got {got} of classes and prompts")

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
        for name, given, known, others in (
            ("sample", changes, SETTINGS, ARGUMENTS),
            ("sample.head", head or {}, [key for key in fields["head"] if key != "kind"], ()),
        ):
            for key in given:
                if key not in known:
                    hint = params.suggest(key, [*known, *others])
                    raise ValueError(
                        f"{source}: {name} has {', '.join(known)}, and no {key!r}{hint}"
                    )
        fields = {**fields, **changes, "head": {**fields["head"], **(head or {})}}
        config = params.parse("sample", fields, SampleConfig, Path(source))
        model = self.weights.mar
        check_fit(config, model.config, model.num_tokens)
        return config

    def generate(
        self,
        given: Shaped[Tensor, "B ..."],
        config: SampleConfig,
        *,
        edit: Edit | None = None,
        on_step: OnStep | None = None,
    ) -> UInt8[Tensor, "B 3 H W"]:
        """Generate an image for each class or text, as many at a time as the stage `sample`."""
        torch.set_float32_matmul_precision("high")  # as the stage sample does
        weights = self.weights
        size = choose_size(
            self.device, partial(count_memory, weights.mar, weights.tokenizer, config)
        )
        return ImageBatches("generate", size).make(
            torch.arange(len(given)),
            lambda part: self._batch(part, given, config, edit, on_step),
        )

    def _batch(
        self,
        part: Tensor,
        given: Tensor,
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
            given[part],
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
        generator: Instead of them, a released generator (`checkpoint-last.pth`), or an exported one
            that takes texts.
        tokenizer: And its tokenizer (`kl16.ckpt`).
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
        files = (Path(generator), Path(tokenizer), ema is not False)
        weights = exported_weights(*files) or released_weights(*files)
    else:
        weights = trained_weights(ema, Path(out))
    weights.mar.to(chosen)
    weights.tokenizer.to(chosen)
    if weights.texts is not None:
        weights.texts.to(chosen)
    return Sampler(weights, chosen)


def _to_arrays(
    images: UInt8[Tensor, "B 3 H W"], remarks: Sequence[str]
) -> UInt8[np.ndarray, "B H W 3"]:
    """Return images as NumPy has them; warn the caller of `sample` or `inpaint`."""
    for remark in [*remarks, count_blank(images).warning()]:
        if remark:
            warnings.warn(remark, stacklevel=3)
    return images.permute(0, 2, 3, 1).contiguous().numpy()
