"""How many gradients a training takes."""

from torch import Tensor, nn


class Gradients:
    """Counts the images whose loss is propagated back through the network, whoever asks for it."""

    def __init__(self, model: nn.Module):
        self.model, self.images = model, 0

    def __enter__(self) -> "Gradients":
        self.hook = self.model.register_forward_hook(self.watch)
        return self

    def __exit__(self, *error) -> None:
        self.hook.remove()

    def watch(self, model: nn.Module, given, logits: Tensor) -> None:
        if logits.requires_grad:
            logits.register_hook(self.count)

    def count(self, gradient: Tensor) -> None:
        self.images += len(gradient)
