"""Wasserstein adversarial training of Wong's network on MNIST, on two cores within an hour."""

import hashlib
import math
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from wotlab import attacks, models, training
from wotlab.balls import WassersteinBall
from wotlab.experiments.runner import NETWORKS, Cell, Run
from wotlab.experiments.trials import judged

EPOCHS, EPS, GROW = 12, 0.16, 3


def budget(epoch: float) -> float:
    """eps: grows over the first epochs, step by step, then stays."""
    return EPS * min(1.0, (int(epoch) + 1) / (GROW + 1))


def rate(epoch: float) -> float:
    """Learning rate of an epoch: half a cosine, from 1 down to 0.02."""
    return 0.02 + 0.98 * (1 + math.cos(math.pi * int(epoch) / EPOCHS)) / 2


def train(run: Run, seed: int = 0) -> tuple[nn.Module, dict]:
    """The network, and what its training took, with the weights' checksum."""
    path = run.checkpoints / NETWORKS["ours"]
    model = models.build("wong-mnist", seed=seed).to(run.device)
    start = time.perf_counter()
    attack = partial(attacks.mirror_ascent, steps=3, step_size=16.0, early_stop=False)
    fit = training.fit(
        model, run.load("train").tensors(),
        training.WassersteinAT(WassersteinBall(EPS), budget, attack),
        epochs=EPOCHS, batch_size=128, schedule=rate, seed=seed,
        optimizer=lambda m: torch.optim.Adam(m.parameters(), 1e-3),
        checkpoint=path.with_suffix(".checkpoint"), progress=True,
    )  # fmt: skip
    models.save_weights(model, path)
    return model, {
        "eps": EPS, "epochs": EPOCHS,
        "training_seconds": sum(entry["seconds"] for entry in fit.history),
        "last_run_seconds": time.perf_counter() - start, "threads": torch.get_num_threads(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }  # fmt: skip


def wasserstein_at(run: Run) -> Iterator[Cell]:
    """Train, and record clean accuracy."""
    clean = partial(judged, run, None, None)
    yield Cell("wasserstein-at", {"attack": "clean"}, run, clean, partial(train, run), seed=0)
