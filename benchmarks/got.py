"""What does GOT's transport term cost? Its seconds, in % of a training step of PGD-AT at batch 128.

The term is the potential's ascent, the cost matrix, the transport and its gradient in latents and
logits; a step is the attack, the loss, its gradient and the optimizer's move. (GOT also runs the
clean images through the network once, as TRADES does.) The first MNIST training images where
WOTLAB_DATA has them, else scikit-learn's digits, enlarged. Medians of `--rounds` rounds.

    python benchmarks/got.py [--rounds 9]
"""

import argparse
import sys
import time
from statistics import median

import torch
from torch import Tensor, nn
from training import images

from wotlab import models, results
from wotlab.experiments.got import defense
from wotlab.training import GOT, PGDAT

BATCH = 128
NETWORKS = {"wong-mnist": (40, 10), "cw-mnist": (40,)}  # steps of the attack; 40 in the paper
KINDS = {"semi-dual": "s", "semi-dual-lm": "lm", "exact": "exact", "entropic": "entropic"}


def step(model: nn.Module, rule: PGDAT, optimizer, x: Tensor, y: Tensor) -> float:
    """Seconds of a step without the term."""
    start = time.perf_counter()
    optimizer.zero_grad()
    rule.loss(model, x, y, torch.arange(len(x))).backward()
    optimizer.step()
    return time.perf_counter() - start


def transport(model: nn.Module, rule: GOT, x: Tensor, x_adv: Tensor, y: Tensor) -> float:
    """Seconds of the term alone."""
    with torch.no_grad(), rule.watch(model) as seen:
        logits, moved = model(x), model(x_adv)
    u, v = (
        (z.requires_grad_(), p.requires_grad_()) for z, p in zip(seen, (logits, moved), strict=True)
    )
    start = time.perf_counter()
    if rule.term.kind == "semi-dual":
        rule.climb(u, v, y)
    rule.term(u, v, (y, y), rule.seen).backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    x, y, samples = images(BATCH)
    for name, lengths in NETWORKS.items():
        for steps in lengths:
            model, plain = models.build(name, seed=0), defense("pgd-at", "mnist", steps)
            optimizer = torch.optim.Adam(model.parameters(), 1e-4)
            x_adv = plain.attacked(model, x, y)
            rules = {kind: defense(f"got-pgd-{term}", "mnist") for kind, term in KINDS.items()}
            taken = {kind: [] for kind in rules}
            whole = []
            for _ in range(given.rounds + 1):  # the first round warms up
                whole.append(step(model, plain, optimizer, x, y))
                for kind, rule in rules.items():
                    taken[kind].append(transport(model, rule, x, x_adv, y))
            unit = median(whole[1:])
            for kind, values in taken.items():
                record = results.Record(
                    what="got-cost", case=f"{name}-pgd-{steps}-{kind}",
                    value=100 * median(values[1:]) / unit, unit="% of a step of PGD-AT",
                    samples=samples, seed=0, seconds=sum(values) + sum(whole),
                    command=f"python benchmarks/got.py {' '.join(sys.argv[1:])}".strip(),
                    details={"step_milliseconds": 1000 * unit, "batch": BATCH,
                             "term_milliseconds": 1000 * median(values[1:]),
                             "rounds": given.rounds},
                )  # fmt: skip
                results.write(record)
                print(f"{record.case:36} {record.value:5.1f} %")


if __name__ == "__main__":
    main()
