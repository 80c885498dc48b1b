"""Adversarial training of weights that an adversary moves, too: AWP."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from wotlab._base import checks
from wotlab._base.networks import dtype_of
from wotlab.attacks import Attack
from wotlab.training._defenses import PGDAT, bare, pgd_adversary

Moves = dict[Tensor, Tensor]  # of weights w, by how much each is moved


@contextmanager
def moved(model: nn.Module, moves: Moves) -> Iterator[None]:
    """The network at w + v. Gradients of what it says go to w; afterwards its weights are w again.

    To add v in place would spoil what the backward pass has kept.
    """
    places = [
        (part._parameters, name, weight)
        for part in model.modules()
        for name, weight in part._parameters.items()
        if weight is not None and weight in moves
    ]
    try:
        for weights, name, weight in places:
            weights[name] = weight + moves[weight]  # type: ignore[assignment] # no Parameter
        yield
    finally:
        for weights, name, weight in places:
            weights[name] = weight


@dataclass(eq=False, repr=False)
class AWP(PGDAT):
    r"""Adversarial weight perturbation: attacked images and weights (Wu, Xia and Wang, 2020).

    .. math:: \min_w \max_{v \in V}\, \mathbb{E} \max_{z \in B_\varepsilon(x)}
        \mathrm{CE}(\mathrm{model}_{w + v}(z), y),
        \quad V = \{v : |v_l| \le \gamma\, |w_l| \text{ for each layer } l\}

    On each minibatch the images z are attacked at the weights w. Then v takes one step from 0,
    layer by layer, along the gradient g of the cross-entropy of z at w (their Algorithm 1 with
    A = 1 and K_2 = 1):

    .. math:: v_l = \gamma\, |w_l|\, \frac{g_l}{|g_l|}

    The weights step from w, with the gradient that the loss has at w + v. A loss that is low
    around w, and not at w alone, overfits less to the attack of the training images.

    Parameters
    ----------
    ball, eps
        As for `PGDAT`.
    attack : attack, optional
        As for `PGDAT`; by default 10 steps of eps / 4, as in the paper.
    gamma : float >= 0
        Largest length of v_l in units of that of w_l: 5e-3 in the paper. 0 is `PGDAT`. Far larger
        ones keep the network from fitting the images at all.

    Raises
    ------
    ValueError
        For gamma < 0, and as for `PGDAT`.

    Notes
    -----
    The paper's step has a length of its own, and is then projected onto V. From v = 0 a step of
    gamma or more ends on the boundary of V, and this is what is done here and in the authors'
    code. A layer is a tensor of two dimensions or more, as it is there: biases and the scales of
    BatchNorm stay. The authors' code takes gamma = 0.01 with PGD-AT and 5e-3 with TRADES; take
    0.01 to compare with it.

    The ascent sees the network in its own mode, as a step does, but leaves the statistics of
    BatchNorm alone; those that are kept are of w + v. It costs one more gradient an image, which
    is little beside the attack's ten and doubles the price of an attack of one step.
    `torch.compile` gains little, since moved weights make it compile anew. In several processes
    each one moves the weights by its own part of the minibatch.

    The paper trains a PreAct ResNet-18 with eps = 8/255 for 200 epochs of SGD from lr 0.1.

    Examples
    --------
    >>> from wotlab import LinfBall, data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> model, defense = models.build("digits-small", seed=0), training.AWP(LinfBall(0.2))
    >>> fit = training.fit(model, images, defense, epochs=1)
    >>> fit.history[0]["gradients"]  # of 64 images: 10 by the attack, 1 by the ascent
    768
    """

    attack: Attack = field(default=pgd_adversary(10))
    gamma: float = field(default=5e-3, kw_only=True)

    def __post_init__(self) -> None:
        checks.positive("gamma", self.gamma, zero=True)
        super().__post_init__()

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Mean cross-entropy of the attacked minibatch, at the attacked weights."""
        z = self.attacked(model, x, y)
        moves = self.moves(bare(model), z, y) if self.gamma else {}
        with moved(model, moves):
            return F.cross_entropy(model(z), y)

    def moves(self, model: nn.Module, z: Tensor, y: Tensor) -> Moves:
        """v of each layer after the step up."""
        layers = [w for w in model.parameters() if w.requires_grad and w.ndim > 1]
        kept = {name: state.clone() for name, state in model.named_buffers()}
        given = (z.to(dtype_of(model, z)),)
        loss = F.cross_entropy(functional_call(model, kept, given, tie_weights=False), y)
        slopes = torch.autograd.grad(loss, layers, allow_unused=True, materialize_grads=True)
        return {
            w: self.gamma * w.detach().norm() * g / g.norm().clamp_min(torch.finfo(g.dtype).tiny)
            for w, g in zip(layers, slopes, strict=True)
        }
