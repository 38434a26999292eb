"""The autoencoders that latent diffusion published (LDM, arXiv 2112.10752): kl-f4 to kl-f32.

Levels with attention have it in the encoder and in the decoder, MAR's KL-16 in the encoder alone.
"""

from typing import Literal

from pydantic import Field, model_validator

from mar.config import cut_down
from mar.tokenizers.convolutional import GaussianAutoencoder, Layout, SizesConfig
from mar.tokenizers.interface import ContinuousSection


class LDMConfig(SizesConfig, ContinuousSection):
    """What a tokenizer of `kind: ldm` is, wherever its file was."""

    kind: Literal["ldm"]
    attention_strides: list[int] = Field(
        description="pixels that a feature is wide on levels with attention; LDM's "
        "attn_resolutions are the image's size divided by them (kl-f16: 16 of 256 pixels, so 16)"
    )
    kl_weight: float = Field(
        ge=0, description="weight of the KL divergence in training it further (LDM: 1e-6)"
    )

    @model_validator(mode="after")
    def _check(self) -> "LDMConfig":
        known = self._strides()
        for stride in self.attention_strides:
            if stride not in known:
                raise ValueError(
                    f"attention_strides: {stride} is not the stride of a level, these are {known}"
                )
        return self

    @property
    def layout(self) -> Layout:
        """Return the layers."""
        levels = [i for i, stride in enumerate(self._strides()) if stride in self.attention_strides]
        return self.make_layout(encoder_attention=levels, decoder_attention=levels)

    def _strides(self) -> list[int]:
        return [2**level for level in range(len(self.channel_multipliers))]


class LDMAutoencoder(GaussianAutoencoder):
    """An autoencoder with the layers of LDM's."""

    def __init__(self, config: LDMConfig) -> None:
        super().__init__(config.layout, config.kl_weight)
        self._config = cut_down(config, LDMConfig)

    @property
    def config(self) -> LDMConfig:
        """Its section of `params.yaml`, but for the file."""
        return self._config
