"""What tests share: images, a network and a program whose optimum is known, projections."""

from functools import partial

import numpy as np
import torch
from scipy.optimize import linprog
from scipy.sparse import coo_matrix, vstack
from torch import nn

import wotlab

PROJECTIONS = (
    {  # at the published weights the unbalanced one moves no mass
        name: getattr(wotlab.projections, name) for name in wotlab.projections.__all__[1:]
    }
    | {"unbalanced_sinkhorn": partial(wotlab.projections.unbalanced_sinkhorn, reg=0.05, tau=2.0)}
)


class Linear(nn.Module):
    """Logits (-<w, z>, <w, z>) / 2, shifted so that class 0 always wins: a pure climb of <w, z>."""

    def __init__(self, w, lead=1e3):
        super().__init__()
        self.w, self.lead = nn.Parameter(w), lead

    def forward(self, z):
        score = (z * self.w).flatten(1).sum(1)
        return torch.stack([-score / 2 + self.lead, score / 2], 1)


def linear_optimum(x, w, eps, cost):
    """max <w, z> over the ball around one image, as a linear program over window moves."""
    h, wd = x.shape[-2:]
    start, c = x.flatten().double().numpy(), cost.dense(h, wd).numpy()
    i, j = np.nonzero(np.isfinite(c) & (start[:, None] > 0))
    each = np.arange(len(i))
    leave = coo_matrix((np.ones(len(i)), (i, each)), (h * wd, len(i)))
    arrive = coo_matrix((np.ones(len(i)), (j, each)), (h * wd, len(i)))
    price = coo_matrix((c[i, j], (0 * each, each)), (1, len(i)))
    solved = linprog(
        -w.flatten().double().numpy()[j],
        A_ub=vstack([price, arrive]),
        b_ub=np.concatenate([[eps * start.sum()], np.ones(h * wd)]),
        A_eq=leave,
        b_eq=start,
        method="highs",
    )
    return -solved.fun


def pair(*shape, seed=0, step=0.5, dtype=torch.double):
    """Images with a black border pixel here and there, and stepped images that leave [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(*shape, generator=generator, dtype=torch.double)
    w = x + step * torch.randn(*shape, generator=generator, dtype=torch.double)
    x[..., 0, :2] = 0
    return x.to(dtype), w.to(dtype)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def digits():
    from sklearn.datasets import load_digits

    x = torch.tensor(load_digits().images[:20] / 16)[:, None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    return x, (x + 0.02 * noise.sign()).clamp(0, 1)
