"""What a ReLU network's outputs can change by when mass moves: slopes between bounds, backwards."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wotlab._base import checks
from wotlab.ot import GroundCost

LINEAR = (nn.Conv2d, nn.Linear, nn.Flatten, nn.AvgPool2d, nn.Identity, nn.Dropout)
ROWS = 256  # neurons at a time
TILES = 7  # a side: neurons of one tile of a layer are bounded together
SEARCH = 30  # trials of the multiplier, at most; five or six are enough
CLOSE = 1e-5  # of a bound's own size: where its search ends


class Layers:
    """A sequential ReLU network as the affine maps between its ReLUs, for images of one shape.

    `parts[k]` is a map, `absolute[k]` the same with the absolute values of its weights and no bias.
    The first one is also held as differences: what a unit of mass changes in its outputs on its way
    from a pixel to each pixel of the window around it.
    """

    def __init__(self, model: nn.Module, shape: torch.Size, window: int | None):
        self.parts = [deepcopy(part).requires_grad_(False) for part in _parts(model)]
        self.absolute = [_absolute(part) for part in self.parts]
        with torch.no_grad():
            z = torch.zeros(1, *shape).to(next(model.parameters()))
            self.shapes, self.outputs = [], []
            for part in self.parts:
                self.shapes.append(z.shape[1:])
                z = part(z)
                self.outputs.append(z.shape[1:])
        radii = GroundCost(window).radii(*shape[1:])
        self.reach = min(radii[0], shape[1] - 1), min(radii[1], shape[2] - 1)
        self.first = self._first()
        self.kernels = self.first, self.first.abs()
        rows = [self.back(0, self.rows(0, some)).flatten(1) for some in self.every(0).split(ROWS)]
        self.widest = torch.cat([each.amax(1) - each.amin(1) for each in rows])

    def rows(self, k: int, neurons: Tensor) -> Tensor:
        """A row for each of these outputs of the k-th map: 1 there, 0 elsewhere."""
        return F.one_hot(neurons, self.outputs[k].numel()).to(self.first)

    def every(self, k: int) -> Tensor:
        """The numbers of all outputs of the k-th map."""
        return torch.arange(self.outputs[k].numel(), device=self.first.device)

    def back(self, k: int, rows: Tensor, absolute: bool = False) -> Tensor:
        """Rows of coefficients on the k-th map's outputs, as such of its inputs: (F, ...)."""
        part = (self.absolute if absolute else self.parts)[k]
        with torch.enable_grad():
            z = rows.new_zeros(len(rows), *self.shapes[k]).requires_grad_()
            out = part(z)
            return torch.autograd.grad(out, z, rows.reshape(out.shape))[0]

    def sent(self, rows: Tensor, radius: Tensor | None) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """sum_m rows_m (w_mj - w_mi), w the first map, for i and each step to j: (F, C, K, H, W).

        Then sum_m radius_m |w_mj - w_mi|. The step that stays holds sum_m rows_m w_mi itself, the
        slope at i. Only of the box of pixels around what rows see, whose corner comes last.
        """
        c, h, w = self.shapes[0]
        conv, (down, right) = self._conv(), self.reach
        tall, wide = conv.stride if conv else (1, 1)
        top, left = map(int, conv.padding) if conv else (0, 0)
        size = [n + 2 * p - k + 2 * r
                for n, p, k, r in zip((h, w), (top, left), self.first.shape[2:], self.reach,
                                      strict=True)]  # fmt: skip
        both = rows[None] if radius is None else torch.stack([rows, radius])
        both = both.reshape(*both.shape[:2], -1, size[0] // tall + 1, size[1] // wide + 1)
        seen = (both != 0).flatten(0, 2).any(0)
        if not bool(seen.any()):
            seen[0, 0] = True
        (i, *_, last), (j, *_, end) = (2 * seen.any(d).nonzero()[:, 0].tolist() for d in (1, 0))
        y, x = i * tall - top - down, j * wide - left - right
        made = []
        for each, kernels in zip(both[..., i : last + 1, j : end + 1], self.kernels, strict=False):
            sums = F.conv_transpose2d(each, kernels, None, (tall, wide))
            sums = sums[..., max(-y, 0) : h - y, max(-x, 0) : w - x]
            made.append(sums.reshape(len(rows), c, -1, *sums.shape[2:]))
        return made[0], made[-1] if len(made) > 1 else made[0] * 0, (max(y, 0), max(x, 0))

    def _conv(self) -> nn.Conv2d | None:
        """The first map, if it is one plain convolution; else it is taken as a matrix."""
        maps = [m for m in self.parts[0] if not isinstance(m, nn.Identity | nn.Dropout)]
        conv = maps[0]
        alone = len(maps) == 1 or (len(maps) == 2 and isinstance(maps[1], nn.Flatten))
        if not alone or not isinstance(conv, nn.Conv2d) or isinstance(conv.padding, str):
            return None
        plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
        return conv if plain else None

    def _first(self) -> Tensor:
        """w(u + d) - w(u) of the first map's kernels, for all steps d: (outputs, C K, h, w).

        Where d = 0, w(u) itself.
        """
        conv, (down, right) = self._conv(), self.reach
        self.first = next(self.parts[0].parameters())  # for its dtype and device
        kernel = conv.weight if conv else self.back(0, self.rows(0, self.every(0)))
        h, w = (n + 2 * r for n, r in zip(kernel.shape[2:], self.reach, strict=True))
        padded = F.pad(kernel, (2 * right, 2 * right, 2 * down, 2 * down))
        here = padded[..., down : down + h, right : right + w]
        moved = [padded[..., i : i + h, j : j + w] - (here if (i, j) != (down, right) else 0)
                 for i in range(2 * down + 1) for j in range(2 * right + 1)]  # fmt: skip
        return torch.stack(moved, 2).flatten(1, 2)


def _parts(model: nn.Module) -> list[nn.Sequential]:
    parts: list[list[nn.Module]] = [[]]
    for module in _flat(model):
        if isinstance(module, nn.ReLU):
            parts.append([])
        elif isinstance(module, LINEAR):
            parts[-1].append(module)
        else:
            raise ValueError(
                "model must be an nn.Sequential of Conv2d, Linear, AvgPool2d, Flatten and ReLU; it "
                f"holds {checks.one(type(module))}"
            )
    if not all(any(isinstance(m, nn.Conv2d | nn.Linear) for m in part) for part in parts):
        raise ValueError("model must have a Conv2d or a Linear before, between and after its ReLUs")
    return [nn.Sequential(*part) for part in parts]


def _flat(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a sequential network, of those inside it, too."""
    if isinstance(model, nn.Sequential):
        for module in model:
            yield from _flat(module)
    else:
        yield model


def _absolute(part: nn.Sequential) -> nn.Sequential:
    part = deepcopy(part)
    for name, weight in part.named_parameters():
        weight.data = weight.abs() if name.endswith("weight") else torch.zeros_like(weight)
    return part


class Around:
    """One image, the moves of its mass, and what they can change at most within a budget."""

    def __init__(self, x: Tensor, layers: Layers, cost: GroundCost):
        self.x, self.layers = x, layers
        h, w = x.shape[1:]
        steps, (down, right) = GroundCost(None).offsets(h, w, x.device), layers.reach
        near = (steps[:, 0].abs() <= down) & (steps[:, 1].abs() <= right)
        prices = cost.between(steps[:1] * 0, steps, x.dtype)[0]
        self.steps, self.prices = steps[near], prices[near]
        self.least = float(prices[prices > 0].min()) if len(prices) > 1 else 1.0
        self.farther = None if bool(near.all()) else prices[~near].min()

    def change(self, rows: Tensor, radius: Tensor | None, budget: float) -> tuple[Tensor, Tensor]:
        r"""Least change of <g, first map> while mass moves, and of <-g, first map>: (F,) each.

        For any g in [rows - radius, rows + radius], (F, outputs). The bound is the dual of
        transport, over all psi >= 0,

            sum_i x_i min_j (s_ij + psi C_ij) - psi budget,   s_ij <= <g, w_j - w_i>.

        Pixels may hold any mass in it, which can only lower it. Mass outside of the box that the
        rows see is that of one pixel far away.
        """
        made, wide, (top, left) = self.layers.sent(rows, radius)
        f, c, k, h, w = made.shape
        box = self.x[:, top : top + h, left : left + w]
        channel, i, j = (box > 0).nonzero().unbind(1)
        made, wide, stay = made.movedim(2, 4), wide.movedim(2, 4), len(self.steps) // 2
        slope, width = made[..., stay], wide[..., stay]
        gain, spread = made[:, channel, i, j], wide[:, channel, i, j]  # (F, L, K)
        row, column = top + i[:, None] + self.steps[:, 0], left + j[:, None] + self.steps[:, 1]
        inside = (row >= 0) & (row < self.x.shape[1]) & (column >= 0) & (column < self.x.shape[2])
        inside[:, stay] = False
        cost = torch.where(inside, self.prices, 0)  # what leads outside stays, and costs nothing
        gain, spread = gain.masked_fill(~inside, 0), spread.masked_fill(~inside, 0)
        mass, rest = box[channel, i, j], self.x.sum((1, 2)) - box.sum((1, 2))
        changes = []
        for sign in (1, -1):
            least = sign * gain - spread
            price = cost
            if self.farther is not None:
                lowest = (sign * slope - width).flatten(2).amin(2).clamp_max(0)
                far = lowest[:, channel] - (sign * slope + width)[:, channel, i, j]
                blank = least.new_zeros(f, c, k)
                least = torch.cat([least, blank], 1)
                least = torch.cat([least, torch.cat([far, lowest], 1)[..., None]], 2)
                price = torch.cat([cost, cost.new_zeros(c, k)])
                price = torch.cat([price, self.farther.expand(len(price), 1)], 1)
            whole = mass if self.farther is None else torch.cat([mass, rest])
            changes.append(_dual(least, price, whole, budget))
        return changes[0], changes[1]


def _dual(gain: Tensor, cost: Tensor, mass: Tensor, budget: float) -> Tensor:
    """max over psi >= 0 of sum_i mass_i min_j (gain_ij + psi cost_ij) - psi budget, for each row.

    Concave and piecewise linear in psi: the next trial is where the tangents of the last two meet.
    """

    def value(psi: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        least, step = torch.add(gain, psi[:, None, None] * cost).min(2)
        paid = cost.expand(gain.shape).gather(2, step[..., None])[..., 0] @ mass
        return least @ mass - psi * budget, paid - budget

    tiny = torch.finfo(gain.dtype).tiny
    steepest = torch.where(cost > 0, -gain / cost.clamp_min(tiny), 0)
    high, low = steepest.amax((1, 2)), gain.new_zeros(len(gain))
    top, falls = -high * budget, torch.full_like(high, -budget)  # nothing is worth its move
    start, rises = value(low, gain)
    best, left = torch.maximum(top, start), (rises > 0).nonzero()[:, 0]
    for _ in range(SEARCH):
        line = rises[left] - falls[left]
        psi = (top - start + rises * low - falls * high)[left] / line
        psi = torch.minimum(torch.maximum(psi, low[left]), high[left])
        ceiling = start[left] + rises[left] * (psi - low[left])
        open_ = ceiling - best[left] > CLOSE * best[left].abs()
        left, psi = left[open_], psi[open_]
        if not len(left):
            break
        now, slope = value(psi, gain[left])
        best[left] = torch.maximum(best[left], now)
        up = left[slope > 0], slope > 0
        down = left[slope <= 0], slope <= 0
        low[up[0]], start[up[0]], rises[up[0]] = psi[up[1]], now[up[1]], slope[up[1]]
        high[down[0]], top[down[0]], falls[down[0]] = psi[down[1]], now[down[1]], slope[down[1]]
    return best


class Bounds:
    """Bounds of all that a network computes within a budget of mass times distance from one image.

    `slopes` holds for each ReLU the least and largest (relu(h) - relu(h_0)) / (h - h_0), h_0 being
    what the image itself has there.
    """

    def __init__(self, around: Around, budget: float):
        self.around, self.layers, self.budget = around, around.layers, budget
        self.slopes: list[tuple[Tensor, Tensor]] = []
        z, low, high = around.x[None], None, None
        for k, part in enumerate(self.layers.parts[:-1]):
            h = part(z).flatten()
            low, high = self._cheap(k, h, low, high)
            open_ = ((low < 0) & (high > 0)).nonzero()[:, 0]
            for some in self._together(k, open_):
                falls, rises = self.change(k, self.layers.rows(k, some))
                low[some] = torch.maximum(low[some], h[some] + falls)
                high[some] = torch.minimum(high[some], h[some] - rises)
            tiny = torch.finfo(h.dtype).tiny
            up, down = high.clamp_min(0), low.clamp_max(0)
            least = torch.where(h > 0, h / (h - down).clamp_min(tiny), 0)
            most = torch.where(h > 0, 1, up / (up - h).clamp_min(tiny))
            self.slopes.append((least, most))
            low, high = low.relu(), high.relu()
            z = h.relu().reshape(1, *self.layers.shapes[k + 1])
        self.outputs = self.layers.parts[-1](z)[0]

    def _cheap(
        self, k: int, h: Tensor, low: Tensor | None, high: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Bounds that say which neurons need better ones: intervals, from the layer before."""
        if low is None or high is None:  # so much mass moves, each unit from the worst to the best
            worst = self.budget / self.around.least * self.layers.widest
            return h - worst, h + worst
        middle, radius = (high + low) / 2, (high - low) / 2
        shape = (1, *self.layers.shapes[k])
        middle = self.layers.parts[k](middle.reshape(shape)).flatten()
        radius = self.layers.absolute[k](radius.reshape(shape)).flatten()
        return middle - radius, middle + radius

    def _together(self, k: int, neurons: Tensor) -> Iterator[Tensor]:
        """The neurons in parts that see much the same pixels: there is little to compute."""
        shape = self.layers.outputs[k]
        tile = torch.zeros_like(neurons)
        if len(shape) == 3:
            h, w = shape[1:]
            row, column = neurons % (h * w) // w, neurons % w
            tile = row * TILES // h * TILES + column * TILES // w
        for each in tile.unique():
            yield from neurons[tile == each].split(ROWS)

    def change(self, k: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Least change of rows (F, outputs) of the k-th map's outputs, and of -rows: (F,), <= 0."""
        middle, radius = rows, None
        for j in range(k, 0, -1):
            least, most = self.slopes[j - 1]
            middle = self.layers.back(j, middle).flatten(1)
            wide = 0 if radius is None else self.layers.back(j, radius, absolute=True).flatten(1)
            low, high = middle - wide, middle + wide
            low = torch.where(low > 0, low * least, low * most)
            high = torch.where(high > 0, high * most, high * least)
            middle, radius = (low + high) / 2, (high - low) / 2
        return self.around.change(middle, radius, self.budget)
