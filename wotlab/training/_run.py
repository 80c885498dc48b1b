"""The one training loop, on one device or many. It can be killed at any moment and goes on."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm

from wotlab._base import checks, settings
from wotlab._base.dataset import MapDataset
from wotlab._base.modes import Passes, eval_mode
from wotlab.training import _checkpoints as checkpoints
from wotlab.training import _inputs as inputs
from wotlab.training._defenses import Defense, Schedule

CLEAN_EVERY = 20  # minibatches between two looks at the loss on clean images


@dataclass
class Fit:
    """What training gave: one entry an epoch in `history`.

    Attributes
    ----------
    history : list of dict
        `loss`: mean of the defense's loss. `clean_loss`: mean cross-entropy on the clean images
        of every twentieth minibatch, in eval mode. `gradients`: images whose loss was
        propagated back through the network, by the attack and by the weights' step together.
        `seconds`: of the epoch, without validation. `validation`, if there was one.
    best : int or None
        With `validate`, the epoch (from 0) whose weights the model has; None if all were NaN,
        or `keep_best` was False.

    Examples
    --------
    >>> from wotlab import data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> model = models.build("digits-small", seed=0)
    >>> fit = training.fit(model, images, epochs=2)
    >>> fit.epochs, sorted(fit.history[-1])
    (2, ['clean_loss', 'gradients', 'loss', 'seconds'])
    """

    history: list[dict] = field(default_factory=list)
    best: int | None = None

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.history)


GIVEN = {True: "given", False: "watched"}  # what validates, in a checkpoint's words


@dataclass
class Run:
    """One call of `fit`: what it trains, how far it is, and what it has counted."""

    model: nn.Module
    data: MapDataset
    defense: Defense
    fabric: Fabric
    optimiser: Optimizer
    schedule: Schedule | None
    validate: Callable[[nn.Module], object] | None
    keep_best: bool
    batch_size: int
    seed: int
    workers: int
    checkpoint: Path | None
    save_every: float

    def __post_init__(self) -> None:
        if hasattr(self.defense, "prepare"):
            self.defense.prepare(len(self.data))
        self.counter, self.done, self.position = Passes(), Fit(), 0
        self.tally, self.classes = _tally(), 0
        self.best: dict[str, Tensor] = {}
        # a compiled model stays as it is: attacks and steps then call the one that is watched
        self.wrapped, self.stepper = self.fabric.setup(
            self.model, self.optimiser, _reapply_compile=False
        )
        factor, count = self.schedule or (lambda epoch: 1.0), len(self.places(0))
        self.scheduler = LambdaLR(self.optimiser, lambda minibatch: factor(minibatch / count))
        self.parts: dict[str, checkpoints.Stateful] = {
            "model": self.model, "optimizer": self.optimiser, "scheduler": self.scheduler,
            "precision": self.fabric.strategy.precision,
        }  # fmt: skip
        if isinstance(self.defense, checkpoints.Stateful):
            self.parts["defense"] = self.defense
        if self.checkpoint is not None:
            self.resume(self.checkpoint)
        self.saved = time.monotonic()

    def resume(self, checkpoint: Path) -> None:
        """Go on from the checkpoint, if it is there and that of this run."""
        if hasattr(self.defense, "at_epoch"):
            self.defense.at_epoch(0)  # one that has been used before is described as a new one
        self.words = {
            "network": checkpoints.of_network(self.model),
            **settings.describe("optimizer", checkpoints.of_optimizer(self.optimiser)),
            **settings.describe("defense", self.defense),
            "schedule": settings.over_epochs(self.schedule),
            "validate": "None" if self.validate is None else GIVEN[self.keep_best],
            "data": settings.of_data(self.data),
            "batch_size": settings.of_number(self.batch_size),
            "seed": settings.of_number(self.seed),
        }
        if checkpoint.exists():
            rest = checkpoints.resume(checkpoint, self.parts, self.words)
            self.done, self.best = Fit(rest["history"], rest["best_epoch"]), rest["best"]
            self.position = rest["position"]
            if self.fabric.global_rank == 0:  # all that was counted is counted by the first one
                self.tally = rest["tally"]

    def train(self, epochs: int, bar: tqdm) -> None:
        smallest = min((len(part) for part in self.places(0).parts), default=0)
        inputs.check_sizes(self.model, smallest)
        for epoch in range(self.done.epochs, epochs):
            places = self.places(epoch)
            if bar.total is None:
                bar.reset(total=len(places) * epochs)
                bar.update(len(places) * epoch + self.position)
            bar.set_description(f"epoch {epoch + 1} of {epochs}")
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                self.epoch(epoch, places, bar)
        self.stepper.zero_grad()  # leave no gradients behind
        if self.best:
            self.model.load_state_dict(self.best)

    def places(self, epoch: int) -> inputs.Places:
        """The minibatches of an epoch."""
        return inputs.Places(
            len(self.data), self.batch_size, self.seed * 1_000_003 + epoch,
            self.fabric.global_rank, self.fabric.world_size,
        )  # fmt: skip

    def epoch(self, epoch: int, places: inputs.Places, bar: tqdm) -> None:
        count = len(places)
        places.skip(self.position)
        batches = inputs.minibatches(self.data, places, self.workers)
        for size in places.sizes:
            start = time.perf_counter()
            # all that is random from here to the next one: the same, resumed or not
            torch.manual_seed(self.mixed(epoch))
            if hasattr(self.defense, "at_epoch"):
                self.defense.at_epoch(epoch + self.position / count)
            x, y, index = next(batches)
            self.minibatch(x, y, index, size)
            self.scheduler.step()
            self.position += 1
            self.tally["seconds"] += time.perf_counter() - start
            bar.update()
            if self.position % CLEAN_EVERY == 1:
                bar.set_postfix(self.shown())
            if self.is_time():
                self.gather()
                self.save()
        self.end_epoch(epoch)
        bar.set_postfix(self.shown())

    def mixed(self, epoch: int) -> int:
        """A seed for this minibatch in this process."""
        place = (self.seed * 1_000_003 + epoch) * 1_000_003 + self.position
        return (place * 1_009 + self.fabric.global_rank) % 2**63

    def minibatch(self, x: Tensor, y: Tensor, index: Tensor, size: int) -> None:
        """One step of the weights, or several on the same images if the defense wants them."""
        y = inputs.as_labels(y)
        inputs.check_images(x)
        x, y, index = (self.fabric.to_device(part) for part in (x, y, index))
        x = x.to(next(w for w in self.model.parameters() if w.is_floating_point()).dtype)
        if not self.classes:
            some, devices = x[:8], range(torch.cuda.device_count())
            with self.fabric.autocast(), torch.random.fork_rng(devices), eval_mode(self.model):
                self.classes = checks.logits(self.model(some), some)
        checks.classes(y, self.classes)
        if self.position % CLEAN_EVERY == 0:
            self.look(x, y)
        # processes average their gradients: with unequal parts, weigh each by its images
        share = len(x) * self.fabric.world_size / size
        for _ in range(getattr(self.defense, "repeats", 1)):
            with self.fabric.autocast():
                loss = self.defense.loss(self.wrapped, x, y, index)
            mean = float(inputs.reduced(self.fabric, share * loss.detach(), "mean"))
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"the loss is {mean} at minibatch {self.position} of epoch "
                    f"{self.done.epochs}; lower the learning rate, or check the images. "
                    f"A checkpoint holds the last good state"
                )
            self.stepper.zero_grad()
            self.fabric.backward(share * loss)
            self.stepper.step()
            self.tally["loss"] += mean * size
            self.tally["seen"] += size

    def look(self, x: Tensor, y: Tensor) -> None:
        """The loss on the clean images, as they are classified."""
        with eval_mode(self.model), self.fabric.autocast():
            loss = F.cross_entropy(self.model(x), y, reduction="sum")
        self.tally["clean_loss"] += float(loss)
        self.tally["clean_seen"] += len(x)

    def shown(self) -> dict:
        """What the progress bar says: of this epoch while it runs, else of the last one."""
        at = self.entry(self.tally) if self.tally["seen"] else self.done.history[-1]
        gradients = at["gradients"] + self.counter.backward
        text = {"loss": f"{at['loss']:.3f}", "clean": f"{at['clean_loss']:.3f}"}
        if "validation" in at:
            text["validation"] = f"{at['validation']:.3f}"
        return text | {"gradients": f"{gradients:,}"}

    @staticmethod
    def entry(tally: dict) -> dict:
        return {
            "loss": tally["loss"] / tally["seen"],
            "clean_loss": tally["clean_loss"] / max(tally["clean_seen"], 1),
            "gradients": round(tally["gradients"]),
            "seconds": tally["seconds"],
        }

    def gather(self) -> dict:
        """What all processes counted, kept by the first; defenses share what they remember."""
        self.tally["gradients"] += self.counter.backward
        self.counter.backward = 0
        names = ("clean_loss", "clean_seen", "gradients")
        mine = torch.tensor([self.tally[n] for n in names], dtype=torch.float64)
        sums = inputs.reduced(self.fabric, mine).tolist()
        whole = self.tally | dict(zip(names, sums, strict=True))
        first = self.fabric.global_rank == 0
        self.tally = whole if first else self.tally | dict.fromkeys(names, 0)
        if hasattr(self.defense, "gather"):
            self.defense.gather(self.fabric)
        return whole

    def end_epoch(self, epoch: int) -> None:
        entry = self.entry(self.gather())
        self.position, self.tally = 0, _tally()
        if self.validate is not None:
            with eval_mode(self.model), torch.enable_grad():
                value = inputs.as_number(self.validate(self.model))
            entry["validation"] = self.fabric.broadcast(value)
            self.counter.backward = 0  # an attack that validates is no training
            values = [past["validation"] for past in self.done.history]
            values = [value for value in values if not math.isnan(value)]
            best = entry["validation"] > max(values, default=-math.inf)
            if best and self.keep_best:
                self.done.best = epoch
                state = self.model.state_dict()
                self.best = {name: w.detach().cpu().clone() for name, w in state.items()}
        self.done.history.append(entry)
        self.save()

    def is_time(self) -> bool:
        """Whether a long epoch wants a checkpoint; the first process decides."""
        if self.checkpoint is None:
            return False
        due = time.monotonic() - self.saved > self.save_every
        return self.fabric.broadcast(due)

    def save(self) -> None:
        if self.checkpoint is None:
            return
        if self.fabric.global_rank == 0:
            rest = {
                "run": self.words, "history": self.done.history,
                "best_epoch": self.done.best, "best": self.best,
                "position": self.position, "tally": self.tally,
            }  # fmt: skip
            checkpoints.save(self.checkpoint, self.parts, rest)
        self.saved = time.monotonic()
        self.fabric.barrier()


def _tally() -> dict:
    return dict.fromkeys(("loss", "seen", "clean_loss", "clean_seen", "gradients", "seconds"), 0.0)
