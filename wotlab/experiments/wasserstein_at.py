"""Wasserstein adversarial training of Wong's network on MNIST, on two cores within an hour."""

import hashlib
import math
import time
from functools import partial

import torch

from wotlab import attacks, evaluate, models, training
from wotlab.balls import WassersteinBall
from wotlab.experiments.runner import NETWORKS, Run

WHAT, CASE = "wasserstein-at", "clean-accuracy"
EPOCHS, EPS, GROW = 12, 0.16, 3


def budget(epoch: float) -> float:
    """eps: grows over the first epochs, step by step, then stays."""
    return EPS * min(1.0, (int(epoch) + 1) / (GROW + 1))


def rate(epoch: float) -> float:
    """Learning rate of an epoch: half a cosine, from 1 down to 0.02."""
    return 0.02 + 0.98 * (1 + math.cos(math.pi * int(epoch) / EPOCHS)) / 2


def train(run: Run, seed: int = 0) -> None:
    """Train, and record clean accuracy, time and the weights' checksum."""
    if not run.due(WHAT, CASE):
        return
    path = run.checkpoints / NETWORKS["ours"]
    model = models.build("wong-mnist", seed=seed).to(run.device)
    start = time.perf_counter()
    attack = partial(attacks.mirror_ascent, steps=3, step_size=16.0, early_stop=False)
    fit = training.fit(
        model,
        run.load("train").tensors(),
        training.WassersteinAT(WassersteinBall(EPS), budget, attack),
        epochs=EPOCHS,
        batch_size=128,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3),
        schedule=rate,
        seed=seed,
        checkpoint=path.with_suffix(".checkpoint"),
        progress=True,
    )
    models.save_weights(model, path)
    seconds = sum(entry["seconds"] for entry in fit.history)
    x, y = run.test_images()
    run.number(
        WHAT, CASE, "%",
        lambda: evaluate.accuracy(model, (x, y)),
        seed=seed,
        details={
            "eps": EPS, "epochs": EPOCHS, "training_seconds": seconds,
            "last_run_seconds": time.perf_counter() - start, "threads": torch.get_num_threads(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        },
    )  # fmt: skip
