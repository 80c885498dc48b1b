"""What goes into a solver and what comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from wotlab._base import checks
from wotlab._base.precision import wide
from wotlab.ot._ground_cost import GroundCost
from wotlab.ot.marginals import Marginal


@dataclass(frozen=True)
class OTResult:
    """Outcome of a transport problem, one entry an image (or histogram) of the batch.

    Attributes
    ----------
    value : Tensor (B,)
        The optimum of the problem that was solved: for `exact` the least cost of a plan, for
        `sinkhorn` and `unbalanced_sinkhorn` the least cost with the entropic term (and the
        penalty on the marginals). Differentiable once: its gradient with respect to `a`, `b` and
        a cost matrix is the exact one at the optimum (the potentials and the plan: envelope
        theorem); a second derivative is refused with a RuntimeError. Right where `converged` is
        true.
    primal : Tensor (B,)
        What the plan found costs, without the entropic term. Detached.
    dual : Tensor (B,)
        Value of the dual problem at `f` and `g`: a lower bound of the optimum always, converged
        or not. (`value` itself may lie below it until it has converged: its plan does not have
        the marginals yet.) Detached.
    f, g : Tensor
        Dual potentials, in the shapes of `a` and `b` and in the units of the cost; of `exact`
        built when first asked for. Detached.
    iterations : Tensor (B,), integers
    converged : Tensor (B,), booleans
        Whether `marginal_error` is at most the tolerance. Never true of a NaN.
    marginal_error : Tensor (B,)
        l1 distance between the plan's marginals and those that optimality asks for, for mass 1.
    plan : Tensor
        (B, n, m) for histograms, (B, C, n, n) for images: n x n numbers a channel, built when
        first asked for. Detached.

    Examples
    --------
    >>> import torch
    >>> from wotlab import ot
    >>> a, b = torch.tensor([[0.5, 0.5, 0]]).double(), torch.tensor([[0, 0.5, 0.5]]).double()
    >>> found = ot.exact(a, b, torch.tensor([[0, 1, 2], [1, 0, 1], [2, 1, 0]]).double())
    >>> found.value, found.dual
    (tensor([1.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    >>> found.plan.sum(2), bool(found.converged)
    (tensor([[0.5000, 0.5000, 0.0000]], dtype=torch.float64), True)
    """

    value: Tensor
    primal: Tensor
    dual: Tensor
    iterations: Tensor
    converged: Tensor
    marginal_error: Tensor
    _potential: Callable[[int], Tensor] = field(repr=False)
    _build_plan: Callable[[], Tensor] = field(repr=False)

    @cached_property
    def f(self) -> Tensor:
        return self._potential(0)

    @cached_property
    def g(self) -> Tensor:
        return self._potential(1)

    @cached_property
    def plan(self) -> Tensor:
        return self._build_plan()


class Optimum(torch.autograd.Function):
    """The rows' optimal values (P,) of a, b and a cost, with the gradient of the envelope theorem.

    `slopes()` gives the derivatives in a and b, `plans()` that in a row's cost matrix. They are
    built when a gradient is asked for.
    """

    @staticmethod
    def forward(ctx: Any, slopes: Callable, plans: Callable, value: Tensor, *of: Tensor) -> Tensor:
        ctx.slopes, ctx.plans = slopes, plans
        ctx.save_for_backward(*of)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        of_a = of_b = of_cost = None
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            of_a, of_b = (
                gradient[:, None, None] * FirstOrder.apply(slope, *inputs) for slope in ctx.slopes()
            )
        if ctx.needs_input_grad[5]:
            of_cost = gradient[:, None, None] * FirstOrder.apply(ctx.plans(), *inputs)
            of_cost = of_cost if inputs[2].ndim == 3 else of_cost.sum(0)
        return None, None, None, of_a, of_b, of_cost


class FirstOrder(torch.autograd.Function):
    """A slope at the optimum of (a, b, cost): its own derivative is refused, not taken for 0."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, a: Tensor, b: Tensor, cost: Tensor) -> Tensor:
        return slope

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise RuntimeError(
            "a transport value has no second derivative here: potentials and plan are those of "
            "the optimum, and how they change with it is not known"
        )


class Problem:
    """Inputs checked and flattened to P independent rows of the same two grids.

    A row is a channel of an image, laid out (P, H, W), or a histogram, laid out (P, 1, n).
    `axes` are the cost matrices that a row's dimensions are summed against: one for rows and one
    for columns where the cost is separable, else one for everything.
    """

    def __init__(self, a: Tensor, b: Tensor, cost: GroundCost | Tensor, *, balanced: bool):
        if isinstance(cost, GroundCost):
            checks.image_pair(a=a, b=b)
        elif isinstance(cost, Tensor):
            checks.histograms("a", a)
            checks.histograms("b", b)
            _check_matrix(cost, a, b)
        else:
            raise ValueError(
                f"cost must be a GroundCost (for images) or a matrix; got {type(cost).__name__}"
            )
        self.given = a
        self.shapes = (a.shape, b.shape)
        self.cost = cost
        # float32 cannot hold potentials of hundreds of nats to 1e-6
        dtype = wide(a.device)
        a, b = a.to(dtype), b.to(dtype)
        if balanced:
            a, b = unit_mass(a), unit_mass(b)
        if isinstance(cost, GroundCost):
            channels, h, w = a.shape[1:]
            layout = (h, w) if cost.separable else (1, h * w)
            a, b = a.reshape(-1, *layout), b.reshape(-1, *layout)
        else:
            channels, a, b = 1, a[:, None], b[:, None]
        self.image = torch.arange(len(a), device=a.device) // channels
        mass_a, mass_b = a.detach().sum((1, 2)), b.detach().sum((1, 2))
        if balanced:
            _check_shares(mass_a, mass_b, channels)
        self.empty = (mass_a == 0) | (mass_b == 0)  # rows that move nothing
        self.rows = (~self.empty).nonzero().flatten()
        self.weights = mass_a[self.rows] if balanced else torch.ones_like(mass_a[self.rows])
        self.all_a, self.all_b = a, b
        self.a, self.b = a[self.rows], b[self.rows]
        if balanced:  # every row is a problem of mass 1; `weights` puts the channels together
            self.a, self.b = unit_mass(self.a), unit_mass(self.b)

    @cached_property
    def axes(self) -> tuple[Tensor, ...]:
        """The cost matrices; n x n numbers for a grid whose cost is not separable."""
        device, dtype = self.a.device, self.a.dtype
        if isinstance(self.cost, Tensor):
            return (self.cost.to(dtype),)
        h, w = self.given.shape[-2:]
        if self.cost.separable:
            return self.cost.axis(h, device, dtype), self.cost.axis(w, device, dtype)
        return (replace(self.cost, window=None).dense(h, w, device, dtype),)

    def places(self, number: Tensor) -> Tensor:
        """Row and column of pixels by their number on the grid: (n, 2)."""
        width = self.given.shape[-1]
        return torch.stack([number // width, number % width], 1)

    def optimum(self, value: Tensor, slopes: Callable, plans: Callable) -> Tensor:
        """The rows' values, (P,), with their gradient. See `Optimum`."""
        cost = self.axes[0] if isinstance(self.cost, Tensor) else self.a.new_zeros(0)
        return Optimum.apply(slopes, plans, value, self.a, self.b, cost)

    @cached_property
    def logs(self) -> tuple[Tensor, Tensor]:
        """Logarithms of the rows' histograms, minus infinity where they are empty."""
        return self.a.detach().log(), self.b.detach().log()

    def total(self, values: Tensor) -> Tensor:
        """Rows' values summed to images, weighted by the channels' mass: (P,) to (B,)."""
        out = torch.zeros(self.shapes[0][0], dtype=values.dtype, device=values.device)
        return out.index_add(0, self.image[self.rows], values * self.weights).to(self.given.dtype)

    def worst(self, values: Tensor) -> Tensor:
        """Largest of an image's rows' values, infinite for NaN: (P,) to (B,)."""
        values = values.where(~values.isnan(), torch.inf) if values.is_floating_point() else values
        out = torch.zeros(self.shapes[0][0], dtype=values.dtype, device=values.device)
        return out.scatter_reduce(0, self.image[self.rows], values, "amax")

    def unmoved(self, marginal: Marginal) -> Tensor:
        """Penalty of the rows that are empty on one side, whose plan is 0: (B,)."""
        out = self.all_a.new_zeros(self.shapes[0][0])
        for full in (self.all_a[self.empty], self.all_b[self.empty]):
            penalty = marginal.penalty(torch.zeros_like(full), full).sum((1, 2))
            out = out.index_add(0, self.image[self.empty], penalty)
        return out.to(self.given.dtype)

    def like(self, values: Tensor, which: int) -> Tensor:
        """Rows laid out as the user's `a` (0) or `b` (1); empty channels get 0."""
        full = (self.all_a, self.all_b)[which]
        out = torch.zeros_like(full, dtype=values.dtype)
        out[self.rows] = values
        return out.reshape(self.shapes[which]).to(self.given.dtype)

    def plan(self, rows: Tensor) -> Tensor:
        """Rows' plans (P, n, m) laid out for the user, scaled to the channels' mass."""
        out = rows.new_zeros(len(self.all_a), *rows.shape[1:])
        out[self.rows] = rows * self.weights[:, None, None]
        if len(self.shapes[0]) == 4:
            out = out.reshape(*self.shapes[0][:2], *rows.shape[1:])
        return out.to(self.given.dtype)


def unit_mass(x: Tensor) -> Tensor:
    """Each image or histogram of the batch divided by its sum."""
    return x / x.sum(tuple(range(1, x.ndim)), keepdim=True)


def _check_matrix(cost: Tensor, a: Tensor, b: Tensor) -> None:
    checks.tensor("cost", cost, cost.ndim, "(n, m) or (B, n, m)")
    wanted = (a.shape[1], b.shape[1])
    if cost.shape != wanted and cost.shape != (len(a), *wanted):
        raise ValueError(
            f"cost must be {wanted} or {(len(a), *wanted)} for these histograms; "
            f"got {tuple(cost.shape)}"
        )
    if len(a) != len(b):
        raise ValueError(f"b must hold as many histograms as a, {len(a)}; got {len(b)}")


def _check_shares(mass_a: Tensor, mass_b: Tensor, channels: int) -> None:
    gap = (mass_a - mass_b).abs()
    if channels > 1 and float(gap.max()) > 1e-4:
        row = int(gap.argmax())
        raise ValueError(
            f"b must hold the same share of its mass in each channel as a: mass moves within a "
            f"channel. Image {row // channels}, channel {row % channels} holds "
            f"{float(mass_b[row]):.4f} of b and {float(mass_a[row]):.4f} of a. "
            f"Scale the channels, or use unbalanced_sinkhorn"
        )
