"""Adversarial Transport: training images carry their adversarial examples with them."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks
from wotlab._base.modes import eval_mode
from wotlab.gibbs import Chain, sample, soft_maximum
from wotlab.training._defenses import LinfDefense, bare
from wotlab.training._inputs import reduced

CHUNK = 4096  # images at a time when processes share what they remember


@dataclass(eq=False, repr=False)
class AdversarialTransport(LinfDefense):
    r"""Adversarial training by one step of a Markov chain a minibatch (Regniez et al., 2022).

    The adversary of the entropic problem on the l-infinity ball is the Gibbs law

    .. math:: p(z) \propto e^{\lambda\, \mathrm{CE}(\mathrm{model}(z),\, y)}

    Each training image keeps `copies` samples of it; a
    minibatch moves its own by `steps` steps of `chain` and trains on where they arrive
    (Algorithm 1). The samples follow the network as it changes: an attack of one gradient that
    is never begun anew.

    Parameters
    ----------
    ball : LinfBall
        eps is 0.3 on MNIST and 8 / 255 on CIFAR-10 in the paper.
    eps : function of the epoch, optional
        As for `PGDAT`. Constant in the paper.
    chain : Chain
        `Chain("sign", sigma=0.2, eta=0.2)` by default, as printed. In units of brightness:
        scale both with eps.
    copies, steps : int >= 1
        K and T in the paper, both 1.
    soft : float > 0, optional
        lam of the soft-max objective over the copies, `wotlab.gibbs.soft_maximum` (Theorem
        3.1). By default their mean, as in Algorithm 1. The same with one copy.
    place : torch.device or str
        Where the samples are kept, in half precision (94 MB for MNIST and a copy): "cpu" by
        default; "cuda" saves the transfers.
    augment : function of a batch of images, optional
        A random crop or flip, applied to the samples each time before the network sees them. Of
        a transform t of single images: `lambda z: torch.stack([t(a) for a in z])`. The data set
        itself must give the same image at each visit, or the sample would belong to another one.

    Raises
    ------
    ValueError
        For a ball of another kind, numbers out of range; from `loss`, if `prepare`
        was not called or the images of a place change.

    Examples
    --------
    >>> from wotlab import LinfBall, data, gibbs, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> chain = gibbs.Chain("sign", sigma=0.1, eta=0.1)
    >>> defense = training.AdversarialTransport(LinfBall(0.2), chain=chain)
    >>> fit = training.fit(models.build("digits-small", seed=0), images, defense, epochs=1)
    >>> fit.history[0]["gradients"]  # of 64 images: one for the chain, one for the weights
    128
    """

    _: KW_ONLY
    chain: Chain = Chain("sign")  # noqa: RUF009, frozen
    copies: int = 1
    steps: int = 1
    soft: float | None = None
    place: torch.device | str = "cpu"
    augment: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.count("copies", self.copies)
        checks.count("steps", self.steps)
        checks.instance("chain", self.chain, Chain)
        if self.soft is not None:
            checks.positive("soft", self.soft)
        if self.augment is not None:
            checks.function("augment", self.augment, "lambda z: z.flip(3)")
        self.size = 0
        self.kept = self.known = self.touched = torch.empty(0)  # until the images' shape is known

    def prepare(self, size: int) -> None:
        """Make room for the samples of so many images; `fit` calls this."""
        checks.count("size", size)
        self.size = size

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Move this minibatch's samples; the mean of their cross-entropy, or its soft maximum."""
        z = self.recall(x, index)
        many, labels = x.repeat(self.copies, 1, 1, 1), y.repeat(self.copies)

        def climbed(z: Tensor) -> Tensor:
            return F.cross_entropy(bare(model)(self.seen(z)), labels, reduction="none")

        with eval_mode(bare(model)):
            z = sample(climbed, z, *self.now.walls(many), chain=self.chain, steps=self.steps)
        self.remember(z, index)
        losses = F.cross_entropy(model(self.seen(z)), labels, reduction="none")
        losses = losses.reshape(self.copies, len(x))
        return losses.mean() if self.soft is None else soft_maximum(losses, self.soft).mean()

    def seen(self, z: Tensor) -> Tensor:
        return z if self.augment is None else self.augment(z)

    def recall(self, x: Tensor, index: Tensor) -> Tensor:
        """The samples of these images, (copies * B, C, H, W); the images at their first visit."""
        if not self.size:
            raise ValueError("call prepare(size) with the size of the data set first")
        if not len(self.kept):
            shape = (self.size, self.copies, *x.shape[1:])
            self.kept = torch.zeros(shape, dtype=torch.half, device=self.place)
            self.known = torch.zeros(self.size, dtype=torch.bool)
            self.touched = torch.zeros(self.size, dtype=torch.bool)
        if self.kept.shape[2:] != x.shape[1:]:
            raise ValueError(
                f"x must be images of one shape, {tuple(self.kept.shape[2:])}; "
                f"got {tuple(x.shape[1:])}"
            )
        at = index.cpu()
        z = self.kept[at.to(self.kept.device)].to(x.device).to(x.dtype)
        known = self.known[at].to(x.device)[:, None, None, None, None]
        z = torch.where(known, z, x[:, None]).transpose(0, 1).flatten(0, 1)
        # rounding, when it was kept, may have put it outside by a little
        return self.now.project(x.repeat(self.copies, 1, 1, 1), z)

    def remember(self, z: Tensor, index: Tensor) -> None:
        at = index.cpu()
        z = z.detach().unflatten(0, (self.copies, len(index))).transpose(0, 1)
        self.kept[at.to(self.kept.device)] = z.to(self.kept.device, torch.half)
        self.known[at] = self.touched[at] = True

    def gather(self, fabric: Fabric) -> None:
        """Share with the other processes what this one has moved since the last time.

        An epoch shows each image to one process only, so sums over processes do it.
        """
        if fabric.world_size == 1 or not len(self.kept):
            return
        for start in range(0, self.size, CHUNK):
            part = slice(start, start + CHUNK)
            mine = self.touched[part]
            moved = self.kept[part].float().cpu() * mine[:, None, None, None, None]
            anyone = reduced(fabric, mine.float()).cpu() > 0
            sums = reduced(fabric, moved).to(self.kept.device, torch.half)
            there = anyone.to(self.kept.device)
            self.kept[part][there] = sums[there]
            self.known[part] |= anyone
        self.touched.zero_()

    def state_dict(self) -> dict:
        """The samples, so that a resumed run goes on with them."""
        return {"kept": self.kept, "known": self.known, "touched": self.touched}

    def load_state_dict(self, state: dict) -> None:
        """Take up samples that `state_dict` gave."""
        kept = state["kept"]
        if len(kept) and kept.shape[1] != self.copies:
            raise ValueError(
                f"the checkpoint keeps {kept.shape[1]} copies; got copies={self.copies}"
            )
        self.kept = kept.to(self.place)
        self.known, self.touched = state["known"], state["touched"]
