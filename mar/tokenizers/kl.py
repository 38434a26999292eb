"""MAR's autoencoder, KL-16, at any stride and width: LDM's, with attention in the encoder alone.

Parameter names are LDM's, so released KL-16 weights load as they are.
"""

from typing import ClassVar, Literal

from pydantic import Field

from mar.config import cut_down
from mar.tokenizers.convolutional import GaussianAutoencoder, Layout, SizesConfig
from mar.tokenizers.interface import ContinuousSection


class EncoderDecoderConfig(SizesConfig):
    """The layers of MAR's tokenizers, with a codebook (`mar.tokenizers.vq`) or without."""

    encoder_attention: bool = Field(
        description="attention after each block of the encoder's last level, as in KL-16"
    )

    @property
    def layout(self) -> Layout:
        """Return the layers."""
        last = [len(self.channel_multipliers) - 1]
        return self.make_layout(
            encoder_attention=last if self.encoder_attention else [], decoder_attention=[]
        )


class AutoencoderConfig(EncoderDecoderConfig, ContinuousSection):
    """Section `tokenizer` of `params.yaml` for `kind: kl`."""

    has_released_layout: ClassVar[bool] = True

    kind: Literal["kl"]
    kl_weight: float = Field(ge=0, description="weight of the KL divergence (LDM: 1e-6)")


class AutoencoderKL(GaussianAutoencoder):
    """The autoencoder."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config.layout, config.kl_weight)
        self._config = cut_down(config, AutoencoderConfig)

    @property
    def config(self) -> AutoencoderConfig:
        """Its section of `params.yaml`."""
        return self._config
