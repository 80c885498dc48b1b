"""Training without a defense."""

from torch import Tensor, nn
from torch.nn import functional as F


class Standard:
    """Cross-entropy on the clean images, E[CE(model(x), y)]: no defense, the baseline of all."""

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the minibatch; `index` are the images' places in the data set."""
        return F.cross_entropy(model(x), y)
