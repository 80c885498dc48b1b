"""What does GOT's transport term cost? Seconds that it adds to a training step at batch 128.

A step is the attack, the loss, its gradient and the optimizer's move. The first MNIST training
images where WOTLAB_DATA has them, else scikit-learn's digits, enlarged. The terms take turns;
medians of `--rounds` steps.

    python benchmarks/got.py [--rounds 9]
"""

import argparse
import sys
import time
from statistics import median

import torch
from training import images

from wotlab import models, results
from wotlab.experiments.got import defense

BATCH = 128
NETWORKS = {"wong-mnist": (40, 10), "cw-mnist": (40,)}  # steps of the attack; 40 in the paper
KINDS = {"semi-dual": "s", "semi-dual-lm": "lm", "exact": "exact", "entropic": "entropic"}


def seconds(model, rule, optimizer, x: torch.Tensor, y: torch.Tensor) -> float:
    """Of one step."""
    start = time.perf_counter()
    optimizer.zero_grad()
    rule.loss(model, x, y, torch.arange(len(x))).backward()
    optimizer.step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    x, y, samples = images(BATCH)
    for name, lengths in NETWORKS.items():
        for steps in lengths:
            plain = defense("pgd-at", "mnist", steps)
            terms = {
                kind: defense(f"got-pgd-{term}", "mnist", steps) for kind, term in KINDS.items()
            }
            rules, taken = {"none": plain} | terms, {}
            models_ = {kind: models.build(name, seed=0) for kind in rules}
            movers = {k: torch.optim.Adam(m.parameters(), 1e-4) for k, m in models_.items()}
            for _ in range(given.rounds + 1):  # the first round warms up
                for kind, rule in rules.items():
                    taken.setdefault(kind, []).append(
                        seconds(models_[kind], rule, movers[kind], x, y)
                    )
            unit = median(taken["none"][1:])
            for kind in KINDS:
                value = 100 * (median(taken[kind][1:]) / unit - 1)
                record = results.Record(
                    what="got-cost", case=f"{name}-pgd-{steps}-{kind}", value=value,
                    unit="% of a step of PGD-AT", samples=samples, seed=0,
                    command=f"python benchmarks/got.py {' '.join(sys.argv[1:])}".strip(),
                    seconds=sum(taken[kind]),
                    details={"milliseconds_without": 1000 * unit, "batch": BATCH,
                             "rounds": given.rounds},
                )  # fmt: skip
                results.write(record)
                print(f"{record.case:36} {value:5.1f} %")


if __name__ == "__main__":
    main()
