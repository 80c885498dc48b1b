"""What does a back-propagation cost in training? Seconds of each defense beside those of PGD-40.

Wong's network, minibatches of 50, float32. The first MNIST training images where they are at hand,
else scikit-learn's digits, enlarged. Every defense runs in the same loop and pays for its own
overhead: what its step does beside the gradients. Defenses take turns; medians of the rounds.

    python benchmarks/training.py [--images 500]
"""

from functools import partial

import torch
from common import in_turns, mnist, options, parse, save

from wotlab import WassersteinBall, models, training
from wotlab.experiments.dro import DEFENSES, MNIST
from wotlab.experiments.strength import EPS
from wotlab.experiments.trials import Trial

ALL = {name: make for name, (make, _) in DEFENSES.items()} | {  # for gpu.py, which asks them all
    "trades": lambda epochs: training.TRADES(MNIST),
    "mart": lambda epochs: training.MART(MNIST),
    "wasserstein-at": lambda epochs: training.WassersteinAT(WassersteinBall(EPS)),
    "got-pgd-s": lambda epochs: training.GOT.paper("GOT-PGD-S", "mnist"),
}


def epoch(x: torch.Tensor, y: torch.Tensor, make, device: torch.device | str = "cpu") -> int:
    """One epoch: the images that were propagated back."""
    model = models.build("wong-mnist", seed=0).to(device)
    done = training.fit(
        model, (x, y), make(1), epochs=1, batch_size=Trial.batch, lr=Trial.lr, progress=False
    )  # fmt: skip
    return done.history[0]["gradients"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=500)
    given = parse(parser)
    x, y, samples = mnist("train", slice(0, given.images), given.data)
    epoch(x, y, DEFENSES["standard"][0])  # warm up
    works = {name: partial(epoch, x, y, make) for name, (make, _) in DEFENSES.items()}
    done = in_turns(given.rounds, works)
    taken = {name: seconds for name, (seconds, _) in done.items()}
    assert all(done[name][1] == each * len(x) for name, (_, each) in DEFENSES.items())
    cost = {name: taken[name] / (each * len(x)) for name, (_, each) in DEFENSES.items()}
    for name in DEFENSES:
        save(
            given.out, "training-speed", {"training": name}, cost[name] / cost["pgd-40"],
            "times the seconds of PGD-40 for a back-propagation", samples, taken[name], seed=0,
            milliseconds=1000 * cost[name], epoch_seconds=taken[name], rounds=given.rounds,
        )  # fmt: skip


if __name__ == "__main__":
    main()
