"""A tokenizer in training: reconstruction loss, the terms of its kind, and an adversarial loss."""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from mar import seeds
from mar.evaluation import lpips
from mar.evaluation.lpips import LPIPSConfig
from mar.tokenizer_training import adversary
from mar.tokenizer_training.adversary import AdversarialConfig, Adversary
from mar.tokenizer_training.loss import LearnedVariance, ReconstructionLoss
from mar.tokenizer_training.perceptual import KEY, Distance, PerceptualConfig
from mar.tokenizers.interface import Tokenizer
from mar.training.checkpoints import Stateful
from mar.training.optimisation import OptimisationConfig, ParameterGroup, parameter_groups
from mar.training.parallelism import add_up_gradients
from mar.training.trainer import OptimizerState, Trainer


class TokenizerTrainingConfig(OptimisationConfig):
    """Section `tokenizer_training` of `params.yaml`."""

    steps: int = Field(
        ge=0,
        description="optimiser steps; 0 uses released weights (kl, diffusers) as they are; a "
        "tokenizer without weights (pixels) takes none",
    )
    flips: bool = Field(description="mirror half of the images at random")
    learned_variance: bool = Field(
        description="divide the error by one learned variance of all values (LDM)"
    )
    perceptual: PerceptualConfig = Field(
        description="distance that is added to each value's error: none, of kind lpips (LDM; "
        "pretrained weights), or of kind classifier (trained on the images at hand)"
    )
    adversarial: AdversarialConfig | None = Field(
        description="the discriminator; null trains without"
    )


class TokenizerTrainer(Trainer[Tokenizer]):
    """A tokenizer in training, with the learned variance and the discriminator."""

    def __init__(
        self, tokenizer: Tokenizer, config: TokenizerTrainingConfig, distance: Distance | None
    ) -> None:
        device = tokenizer.device
        variance = LearnedVariance().to(device) if config.learned_variance else None

        def group(tokenizer: Tokenizer) -> list[ParameterGroup]:
            groups = parameter_groups(
                tokenizer, config.weight_decay, without_decay=tokenizer.without_decay()
            )
            if variance is not None:
                groups.append({"params": list(variance.parameters()), "weight_decay": 0.0})
            return groups

        super().__init__(tokenizer, group, config)
        if distance is not None:
            distance = distance.to(device)
        self.loss = ReconstructionLoss(config.perceptual, distance, variance)
        self.adversary: Adversary | None = None
        if config.adversarial is not None:
            betas = (config.beta_1, config.beta_2)
            self.adversary = Adversary(
                config.adversarial, seed=config.seed, betas=betas, device=device
            )

    def parts(self) -> dict[str, Stateful]:
        """Return everything whose state a checkpoint holds."""
        parts = super().parts()
        if self.loss.variance is not None:
            parts["variance"] = self.loss.variance
        if self.adversary is not None:
            parts["adversary"] = self.adversary
            parts["adversary_optimizer"] = OptimizerState(self.adversary.optimizer)
        return parts

    def add_up_gradients(self) -> None:
        """Make each gradient the sum over all processes, that of the learned variance too."""
        super().add_up_gradients()
        if self.loss.variance is not None:
            add_up_gradients(self.loss.variance.parameters())


def new_trainer(
    tokenizer: Tokenizer,
    config: TokenizerTrainingConfig,
    given: Mapping[str, Tensor] | None = None,
    *,
    distance: Distance | None = None,
) -> TokenizerTrainer:
    """Set the weights and return a trainer.

    Args:
        tokenizer: What is trained.
        config: How to train.
        given: The weights to begin with; None for random ones.
        distance: The network of `config.perceptual`, if steps will be taken.

    Raises:
        ValueError: random weights would be used untrained.
    """
    if given is not None:
        tokenizer.load_state_dict(given)
    elif config.steps or not is_trainable(tokenizer):
        tokenizer.initialize(seeds.make_rng("weights", config.seed, device=tokenizer.device))
    else:
        raise ValueError(
            "tokenizer_training.steps: must be greater than 0 for a tokenizer that begins with "
            "random weights, got 0"
        )
    return TokenizerTrainer(tokenizer, config, distance)


def is_trainable(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer has weights that can be trained."""
    return any(True for _ in tokenizer.parameters())


def takes_steps(tokenizer: Tokenizer, config: TokenizerTrainingConfig) -> bool:
    """Return whether a tokenizer will be trained, and so needs the networks of its losses."""
    return config.steps > 0 and is_trainable(tokenizer)


def check_size(config: TokenizerTrainingConfig, image_size: int) -> None:
    """Check that images are large enough for the losses.

    Raises:
        ValueError: they are too small for one of them.
    """
    if isinstance(config.perceptual, LPIPSConfig) and image_size < lpips.SMALLEST:
        raise ValueError(
            f"{KEY}.kind: lpips needs images of at least {lpips.SMALLEST} px, got {image_size}"
        )
    if config.adversarial is not None:
        adversary.check_size(config.adversarial, image_size, key="tokenizer_training.adversarial")
