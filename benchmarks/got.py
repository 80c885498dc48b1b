"""What does GOT cost beside PGD-AT, at batch 128? Seconds in % of a training step of PGD-AT.

Two numbers: the transport term alone (the potential's ascent, the cost matrix, the transport and
its gradient in latents and logits), and all that a step of GOT takes more than a step of PGD-AT,
the clean images' way through the network and back included. A step is the attack, the loss, its
gradient and the optimizer's move. The first MNIST training images where they are at hand, else
scikit-learn's digits, enlarged.

    python benchmarks/got.py [--rounds 9]
"""

from functools import partial

import torch
from common import in_turns, mnist, options, parse, save
from torch import Tensor, nn

from wotlab import models
from wotlab.experiments.got import defense
from wotlab.training import GOT

BATCH = 128
NETWORKS = {"wong-mnist": (40, 10), "cw-mnist": (40,)}  # steps of the attack; 40 in the paper
KINDS = {"semi-dual": "s", "semi-dual-lm": "lm", "exact": "exact", "entropic": "entropic"}


def step(model: nn.Module, rule, x: Tensor, y: Tensor) -> None:
    """A whole step of training, which leaves the weights as they are."""
    optimizer = torch.optim.Adam(model.parameters(), 0.0)
    rule.loss(model, x, y, torch.arange(len(x))).backward()
    optimizer.step()
    optimizer.zero_grad()


def seen(model: nn.Module, rule: GOT, x: Tensor, x_adv: Tensor) -> tuple[tuple, tuple]:
    """Latents and logits of the clean and of the attacked images."""
    with torch.no_grad(), rule.watch(model) as latents:
        logits, moved = model(x), model(x_adv)
    pairs = zip(latents, (logits, moved), strict=True)
    return tuple((z.detach(), p.detach()) for z, p in pairs)


def transport(rule: GOT, pairs: tuple[tuple, tuple], y: Tensor) -> None:
    """The term alone, and its gradient."""
    u, v = (tuple(w.clone().requires_grad_() for w in pair) for pair in pairs)
    if rule.term.kind == "semi-dual":
        rule.climb(u, v, y)
    rule.term(u, v, (y, y), rule.seen).backward()


def main() -> None:
    parser = options(__doc__)
    given = parse(parser)
    x, y, samples = mnist("train", slice(0, BATCH), given.data)
    for name, lengths in NETWORKS.items():
        for steps in lengths:
            model, plain = models.build(name, seed=0), defense("pgd-at", "mnist", steps)
            x_adv = plain.attacked(model, x, y)
            terms, works = {}, {"pgd-at": partial(step, model, plain, x, y)}
            for kind, term in KINDS.items():
                rule = defense(f"got-pgd-{term}", "mnist", steps)
                step(model, rule, x, y)  # warm up
                works[kind] = partial(step, model, rule, x, y)
                pairs = seen(model, rule, x, x_adv)
                terms[f"{kind}-term"] = partial(transport, rule, pairs, y)
            taken = in_turns(given.rounds, works | terms)
            unit = taken["pgd-at"][0]
            for kind in KINDS:
                term, whole = taken[f"{kind}-term"][0], taken[kind][0]
                keys = {"network": name, "steps": steps, "transport": kind}
                save(
                    given.out, "got-cost", keys, 100 * term / unit,
                    "% of a step of PGD-AT", samples, term + whole, seed=0, batch=BATCH,
                    step_milliseconds=1000 * unit, term_milliseconds=1000 * term,
                    got_step_milliseconds=1000 * whole,
                    whole_step_more=100 * (whole / unit - 1), rounds=given.rounds,
                )  # fmt: skip


if __name__ == "__main__":
    main()
