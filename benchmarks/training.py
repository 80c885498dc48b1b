"""What does a back-propagation cost in training? Seconds of each defense beside those of PGD-40.

Wong's network, minibatches of 50, float32. The first MNIST training images where they are at hand,
else scikit-learn's digits, enlarged. Every defense runs in the same loop and pays for its own
overhead: what its step does beside the gradients. Defenses take turns; medians of the rounds.

    python benchmarks/training.py [--images 500]
"""

from functools import partial

import torch
from common import in_turns, mnist, options, parse, save

from wotlab import models, training
from wotlab.experiments.dro import DEFENSES
from wotlab.experiments.trials import Trial


def epoch(x: torch.Tensor, y: torch.Tensor, make, each: int) -> None:
    """One epoch, with so many back-propagations of each image."""
    model = models.build("wong-mnist", seed=0)
    done = training.fit(
        model, (x, y), make(1), epochs=1, batch_size=Trial.batch, lr=Trial.lr, progress=False
    )  # fmt: skip
    assert done.history[0]["gradients"] == each * len(x)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=500)
    given = parse(parser)
    x, y, samples = mnist("train", slice(0, given.images), given.data)
    epoch(x, y, *DEFENSES["standard"])  # warm up
    works = {name: partial(epoch, x, y, *defense) for name, defense in DEFENSES.items()}
    taken = {name: seconds for name, (seconds, _) in in_turns(given.rounds, works).items()}
    cost = {name: taken[name] / (each * len(x)) for name, (_, each) in DEFENSES.items()}
    for name in DEFENSES:
        save(
            given.out, "training-speed", {"training": name}, cost[name] / cost["pgd-40"],
            "times the seconds of PGD-40 for a back-propagation", samples, taken[name], seed=0,
            milliseconds=1000 * cost[name], epoch_seconds=taken[name], rounds=given.rounds,
        )  # fmt: skip


if __name__ == "__main__":
    main()
