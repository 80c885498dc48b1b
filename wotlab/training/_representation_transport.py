"""Transport between two batches of (latent, prediction) pairs: the term that GOT adds."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wotlab import ot
from wotlab._base import checks

Pairs = tuple[Tensor, Tensor]  # latents (n, k) and logits (n, c) of a batch

LATENT = ("cosine", "l2")
PREDICTION = ("kl", "reverse-kl", "l1")
KINDS = ("semi-dual", "entropic", "divergence", "exact", "paired")


@dataclass(frozen=True)
class JointCost:
    r"""Cost between pairs u = (z, p) of a latent and a prediction.

    .. math:: d(u, u') = \lambda\, d_x(z, z') + d_y(p, p')

    Parameters
    ----------
    latent : "cosine" or "l2"
        d_x: 1 - cos(z, z'), the paper's, or |z - z'|. A latent of length 0 has cosine 0 with all.
    prediction : "kl", "reverse-kl" or "l1"
        d_y of p = soft-max(logits): KL(p | p'), KL(p' | p), or |p - p'|_1. The paper writes KL
        and does not say in which direction; neither is a distance (no symmetry, no triangle
        inequality), and so is the cosine's.
    lam : float >= 0
        1 in the paper.

    Raises
    ------
    ValueError
        For an unknown name or lam < 0.

    Examples
    --------
    >>> import torch
    >>> from wotlab import training
    >>> u = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    >>> v = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[9.0, 0.0]]).double()
    >>> training.JointCost(prediction="l1")(u, v).round(decimals=3)
    tensor([[2.]], dtype=torch.float64)
    """

    latent: str = "cosine"
    prediction: str = "kl"
    lam: float = 1.0

    def __post_init__(self) -> None:
        for what, known in (("latent", LATENT), ("prediction", PREDICTION)):
            if getattr(self, what) not in known:
                raise ValueError(
                    f"{what} must be one of {', '.join(known)}; got {getattr(self, what)!r}"
                )
        checks.positive("lam", self.lam, zero=True)

    @property
    def symmetric(self) -> bool:
        return self.prediction == "l1"

    def __call__(self, u: Pairs, v: Pairs) -> Tensor:
        """Matrix (n, m) for latents (n, k), (m, k) and logits (n, c), (m, c)."""
        (z, logits), (z_, logits_) = u, v
        if self.latent == "cosine":
            d_x = 1 - F.normalize(z) @ F.normalize(z_).T
        else:
            d_x = torch.cdist(z, z_)
        return self.lam * d_x + self._between(logits.log_softmax(1), logits_.log_softmax(1))

    def _between(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        p, q = log_p.exp(), log_q.exp()
        if self.prediction == "l1":
            return torch.cdist(p, q, p=1)
        if self.prediction == "kl":
            return (p * log_p).sum(1)[:, None] - p @ log_q.T
        return (q * log_q).sum(1)[None, :] - log_p @ q.T


@dataclass(frozen=True)
class JointTransport:
    r"""Transport cost between the laws of two batches of pairs (latent, prediction).

    The laws are uniform on the batches. u is the clean batch, v the adversarial one, C the matrix
    of `JointCost`.

    Parameters
    ----------
    kind : "semi-dual", "entropic", "divergence", "exact" or "paired"
        "semi-dual": the paper's. The maximum over a potential :math:`\varphi` on the clean latents
        of :math:`\mathbb{E}_i \varphi(z_i) + \mathbb{E}_j \varphi^c(v_j)`, where
        :math:`\varphi^c(v) = -\theta \log \mathbb{E}_i\, e^{(\varphi(z_i) - C(u_i, v)) / \theta}`
        and :math:`\theta` is reg, with the potential taken from a family of functions (`potential`)
        and learned by gradient ascent: a lower bound of "entropic".
        "entropic": the value of :math:`\min_\pi \langle C, \pi\rangle + \mathtt{reg}\,
        \mathrm{KL}(\pi \mid a b^\top)`, solved.
        "divergence": the same, debiased: minus half of both self-terms. Wants a symmetric cost.
        "exact": :math:`\min_\pi \langle C, \pi\rangle`, by a network simplex on the CPU.
        "paired": mean_i C(u_i, v_i), each image with its own attack: no transport. It is what the
        paper's equation 5 gives when all its means run over pairs of a clean image and its attack.
    cost : JointCost
    reg : float > 0
        0.1 in the paper. The cosine's costs lie in [0, 2]: at 0.1 the entropic bias dominates.
    match_labels : bool
        Mass moves within a class only. Each class is a problem of its own, weighted by its share:
        the printed indicator in the kernel is +infinity for a class that one side lacks, and
        unbounded where the classes' masses differ.

    Raises
    ------
    ValueError
        For an unknown kind, reg <= 0, "divergence" with a cost that is not symmetric.

    Notes
    -----
    "semi-dual" and "entropic" are positive even between a batch and itself, and least where all
    representations are one: they pull every image towards every other. A small network that is
    trained with them from its first weights may end there. "divergence", "exact" and "paired"
    are 0 between a batch and itself.

    Examples
    --------
    >>> import torch
    >>> from wotlab import training
    >>> latents, logits = torch.eye(2).double(), torch.zeros(2, 2).double()
    >>> u, v, y = (latents, logits), (latents.flip(0), logits), torch.tensor([0, 1])
    >>> terms = training.JointTransport("exact"), training.JointTransport("paired")
    >>> [round(float(term(u, v, (y, y))), 3) for term in terms]  # swapped
    [0.0, 1.0]
    """

    kind: str = "semi-dual"
    cost: JointCost = JointCost()
    _: KW_ONLY
    reg: float = 0.1
    match_labels: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {self.kind!r}")
        checks.instance("cost", self.cost, JointCost)
        if self.kind == "divergence" and not self.cost.symmetric:
            raise ValueError(
                f'the divergence needs a symmetric cost, prediction="l1"; '
                f"got {self.cost.prediction!r}"
            )
        checks.positive("reg", self.reg)
        checks.flags(match_labels=self.match_labels)

    def __call__(
        self,
        u: Pairs,
        v: Pairs,
        labels: tuple[Tensor, Tensor],
        potential: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The term, a scalar, differentiable in latents and logits; and in `potential`.

        Parameters
        ----------
        u, v : (latents (n, k), logits (n, c)), (latents (m, k), logits (m, c))
        labels : (labels (n,), labels (m,))
            Used where classes are matched.
        potential : function of latents (n, k), values (n, 1)
            For "semi-dual".

        Raises
        ------
        ValueError
            For NaN in a latent or in logits, and, where classes are matched, for a class that has
            unlike shares in the two batches.
        """
        z = u[0].flatten(1).to(torch.promote_types(u[0].dtype, torch.float32))
        u, v = (((side[0].flatten(1).double(), side[1].flatten(1).double())) for side in (u, v))
        for name, side in (("clean", u), ("adversarial", v)):
            for what, part in zip(("latent", "logits"), side, strict=True):
                if not bool(part.isfinite().all()):
                    raise ValueError(f"the {name} {what} hold NaN or infinity; lower the rate")
        a, b = self._laws(labels, u[0])
        weights = a.sum(1)
        total = weights.sum()
        if self.kind == "paired":
            if len(u[0]) != len(v[0]):
                raise ValueError(
                    f'"paired" needs an attacked image for each clean one; got {len(v[0])} for '
                    f"{len(u[0])}"
                )
            return self.cost(u, v).diagonal().mean()
        if self.kind == "semi-dual":
            if potential is None:
                raise ValueError('"semi-dual" needs a potential; got None')
            value = self._semi_dual(potential(z).double()[:, 0], a, b, self.cost(u, v))
        elif self.kind == "exact":
            value = ot.exact(a, b, self._each(self.cost(u, v), a)).value
        elif self.kind == "entropic":
            value = ot.sinkhorn(a, b, self._each(self.cost(u, v), a), self.reg).value
        else:
            uv, uu, vv = (self._each(self.cost(*p), a) for p in ((u, v), (u, u), (v, v)))
            value = ot.sinkhorn_divergence(a, b, (uv, uu, vv), self.reg)
        return (weights * value).sum() / total

    def _laws(self, labels: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """Histograms on the two batches: one for all, or one a class with its share as mass."""
        if not self.match_labels:
            a, b = (like.new_full((1, len(y)), 1 / len(y)) for y in labels)
            return a, b
        classes = torch.unique(torch.cat(labels))
        a, b = ((classes[:, None] == y).to(like.dtype) / len(y) for y in labels)
        gap = (a.sum(1) - b.sum(1)).abs()
        if float(gap.max()) > 1e-9:
            k = int(gap.argmax())
            raise ValueError(
                f"class {int(classes[k])} has {float(a[k].sum()):.0%} of the clean batch and "
                f"{float(b[k].sum()):.0%} of the adversarial one: with matched labels no mass can "
                f"move between classes. Take the same labels on both sides"
            )
        return a, b

    @staticmethod
    def _each(cost: Tensor, a: Tensor) -> Tensor:
        return cost.expand(len(a), *cost.shape)

    def _semi_dual(self, phi: Tensor, a: Tensor, b: Tensor, cost: Tensor) -> Tensor:
        """mean phi + mean of its soft c-transform, for each law: (K,)."""
        a, b = (h / h.sum(1, keepdim=True) for h in (a, b))
        inner = (phi[:, None] - cost) / self.reg  # (n, m)
        soft = torch.logsumexp(a.log()[:, :, None] + inner, 1)  # (K, m)
        return a @ phi - self.reg * (b * soft).sum(1)
