"""What does a back-propagation cost in training? Seconds of each defense beside those of PGD-40.

Wong's network, minibatches of 50, float32. The first MNIST training images where WOTLAB_DATA has
them, else scikit-learn's digits, enlarged. Defenses take turns; medians of `--rounds` passes.

    python benchmarks/training.py [--images 500] [--rounds 5]
"""

import argparse
import sys
import time
from statistics import median

import torch

import wotlab
from wotlab import models, results, training
from wotlab.experiments.dro import DEFENSES
from wotlab.experiments.linf import Trial


def images(count: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    try:
        x, y = wotlab.data.load("mnist", "train", download=False).tensors(slice(0, count))
        return x, y, f"MNIST training images 0 to {count - 1}"
    except FileNotFoundError:
        x, y = wotlab.data.load("digits", "train").tensors(slice(0, count))
        x = torch.nn.functional.interpolate(x, size=28, mode="bilinear")
        return x, y, f"digits 0 to {count - 1}, enlarged to 28x28"


def seconds(x: torch.Tensor, y: torch.Tensor, make, each: int) -> float:
    """Of one epoch, for each back-propagation of an image."""
    model = models.build("wong-mnist", seed=0)
    start = time.perf_counter()
    done = training.fit(
        model, (x, y), make(1), epochs=1, batch_size=Trial.batch, lr=Trial.lr, progress=False
    )  # fmt: skip
    assert done.history[0]["gradients"] == each * len(x)
    return (time.perf_counter() - start) / (each * len(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    x, y, samples = images(given.images)
    taken = {name: [] for name in DEFENSES}
    for _ in range(given.rounds):
        for name, (make, each) in DEFENSES.items():
            taken[name].append(seconds(x, y, make, each))
    unit = median(taken["pgd-40"])
    for name, values in taken.items():
        record = results.Record(
            what="training-speed", case=name, value=median(values) / unit,
            unit="times the seconds of PGD-40 for a back-propagation", samples=samples, seed=0,
            command=f"python benchmarks/training.py {' '.join(sys.argv[1:])}".strip(),
            seconds=sum(values) * DEFENSES[name][1] * len(x),
            details={"milliseconds": 1000 * median(values), "rounds": given.rounds},
        )  # fmt: skip
        results.write(record)
        print(f"{name:16} {record.value:5.2f}")


if __name__ == "__main__":
    main()
