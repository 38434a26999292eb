"""The autoencoder of a `diffusers` folder: Stable Diffusion, SDXL, SD3, FLUX and their kin.

Its layers are LDM's under other names. Once its file is read (`mar.released`) it is a
tokenizer like any other, saved and loaded in our own format. The folder's `scaling_factor` and
`shift_factor` are not used: the latents of the training images are measured when they are cached.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mar.config import cut_down
from mar.tokenizers.convolutional import GaussianAutoencoder, Layout
from mar.tokenizers.interface import ContinuousSection


class DiffusersConfig(ContinuousSection):
    """What a tokenizer of `kind: diffusers` is, wherever its folder was.

    The fields from `latent_channels` to `mid_block_add_attention` are named as in the folder's
    `config.json`, and compared with it when the weights are read: with them here, everything can be
    checked without the folder, and only `train_tokenizer` needs it.
    """

    kind: Literal["diffusers"]
    latent_channels: int = Field(gt=0, le=65_536, description="channels of a latent")
    block_out_channels: list[Annotated[int, Field(le=65_536)]] = Field(
        min_length=1,
        max_length=12,
        description="channels of each level; the stride is 2^(levels - 1)",
    )
    layers_per_block: int = Field(
        gt=0, le=1_000, description="residual blocks of a level (one more in the decoder)"
    )
    norm_num_groups: int = Field(gt=0, le=65_536, description="groups of each group norm")
    use_quant_conv: bool = Field(description="a 1x1 convolution behind the encoder")
    use_post_quant_conv: bool = Field(description="a 1x1 convolution before the decoder")
    mid_block_add_attention: bool = Field(description="attention at the lowest resolution")
    kl_weight: float = Field(
        ge=0, description="weight of the KL divergence in training it further (LDM: 1e-6)"
    )

    @model_validator(mode="after")
    def _check(self) -> "DiffusersConfig":
        for channels in self.block_out_channels:
            if channels <= 0 or channels % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels: {channels} channels do not divide into "
                    f"{self.norm_num_groups} groups (norm_num_groups)"
                )
        return self

    @property
    def stride(self) -> int:
        """Return how many pixels a latent is wide."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def layout(self) -> Layout:
        """Return the layers, in our words."""
        return Layout(
            latent_channels=self.latent_channels,
            first_channels=self.block_out_channels[0],
            level_channels=self.block_out_channels,
            num_res_blocks=self.layers_per_block,
            middle_attention=self.mid_block_add_attention,
            quant_conv=self.use_quant_conv,
            post_quant_conv=self.use_post_quant_conv,
            norm_groups=self.norm_num_groups,
        )


class DiffusersAutoencoder(GaussianAutoencoder):
    """An autoencoder with the layers that such a folder describes."""

    def __init__(self, config: DiffusersConfig) -> None:
        super().__init__(config.layout, config.kl_weight)
        self._config = cut_down(config, DiffusersConfig)

    @property
    def config(self) -> DiffusersConfig:
        """Its section of `params.yaml`, but for the folder."""
        return self._config
