"""Which tokens of a text are there.

Shapes: B texts, K tokens of a text.
"""

from jaxtyping import Bool, Shaped
from torch import Tensor


def is_present(tokens: Shaped[Tensor, "B K ..."]) -> Bool[Tensor, "B K"]:
    """Return which tokens are there: behind the end of a text there are zeros."""
    present = tokens != 0
    return present.any(dim=2) if tokens.ndim == 3 else present
