"""The one training loop, on one device or many. It can be killed at any moment and goes on."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab._base.dataset import MapDataset, as_dataset
from wotlab._base.modes import eval_mode
from wotlab.training import _checkpoints as checkpoints
from wotlab.training import _inputs as inputs
from wotlab.training._defenses import Defense, Schedule, Standard

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
        With `validate`, the epoch (from 0) whose weights the model has; None if all were NaN.

    Examples
    --------
    >>> from wotlab import data, models, training
    >>> images = data.load("digits", "train").tensors(slice(64))
    >>> fit = training.fit(models.build("digits-small", seed=0), images, epochs=2)
    >>> fit.epochs, sorted(fit.history[-1])
    (2, ['clean_loss', 'gradients', 'loss', 'seconds'])
    """

    history: list[dict] = field(default_factory=list)
    best: int | None = None

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.history)


def fit(
    model: nn.Module,
    data: Dataset | tuple[Tensor, Tensor],
    defense: Defense | None = None,
    *,
    epochs: int,
    batch_size: int = 128,
    lr: float = 0.1,
    optimizer: Callable[[nn.Module], Optimizer] | None = None,
    schedule: Schedule | None = None,
    validate: Callable[[nn.Module], object] | None = None,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    save_every: float = 300.0,
    fabric: Fabric | None = None,
    workers: int = 0,
    progress: bool = False,
) -> Fit:
    """Minimise `defense.loss` over the weights of `model`, in place.

    Parameters
    ----------
    model : nn.Module
        In eval mode it is put into train mode as a whole; in train mode its parts that are in
        eval mode, such as a frozen BatchNorm, stay so. In the end each part is in the mode that
        it came in.
    data : Dataset of (image, label), or a pair of tensors or arrays (images, labels)
        Images (C, H, W) in [0, 1] and class numbers.
    defense : object with `loss(model, x, y, index)`, optional
        `Standard()` by default. `index` are the images' places in `data`. What else it may have
        is said in `wotlab.training`.
    epochs : int >= 1
        In all: a resumed run does those that are missing.
    batch_size : int >= 1
        Images a minibatch, over all processes together.
    lr : float > 0
        Learning rate of the default optimizer, SGD with momentum 0.9 and weight decay 5e-4.
    optimizer : function of the model, optional
        Makes another optimizer, such as `lambda m: torch.optim.Adam(m.parameters(), 1e-3)`.
    schedule : function of the epoch, optional
        Factor on the learning rate; constant by default. Asked at each minibatch: 0 is the first
        one, 2.5 the middle of the third epoch, `epochs` the end.
    validate : function of the model, optional
        Called after each epoch in eval mode; returns a number (or a `Share`), the larger, the
        better, such as the accuracy under an attack on images kept aside. The model ends with the
        weights of the best epoch; NaN is never the best.
    seed : int
        Of shuffling and of the model's own randomness (dropout). The same seed gives the same
        weights on the same machine, resumed or not; the global random state is left alone.
    checkpoint : path, optional
        Written after each epoch, and within an epoch every `save_every` seconds; replaced whole
        or not at all. Training goes on from it, minibatch for minibatch, if it is there.
    save_every : float > 0
    fabric : lightning_fabric.Fabric, optional
        Devices, processes and precision, such as
        `Fabric(devices=4, strategy="ddp", precision="bf16-mixed")`, launched
        (`fabric.launch()`). By default the model's own device in its own precision. Strategies
        that split the weights over processes (FSDP, DeepSpeed) are not supported.
    workers : int >= 0
        Processes that load images.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        For numbers out of range, what is no defense or no function where one is asked for, a
        model without weights that learn, data without labels or places, images out of [0, 1],
        labels that are no classes of the model, a checkpoint that is damaged or belongs to another
        network, defense, data set or setting; it says which.
    FloatingPointError
        When the loss is no longer finite. The checkpoint then holds the last good state.

    Examples
    --------
    >>> from wotlab import data, evaluate, models, training
    >>> train, test = (data.load("digits", split).tensors() for split in ("train", "test"))
    >>> model = models.build("digits-small", seed=0)
    >>> fit = training.fit(model, train, epochs=3, batch_size=64)
    >>> fit.epochs, float(evaluate.accuracy(model, test)) > 0.8
    (3, True)
    """
    inputs.check_model(model)
    defense = Standard() if defense is None else defense
    inputs.check_functions(defense, optimizer, schedule, validate)
    data = as_dataset(data)
    checks.count("epochs", epochs)
    checks.count("batch_size", batch_size)
    checks.count("workers", workers, zero=True)
    checks.instance("seed", seed, Integral)
    checks.positive("lr", lr)
    checks.positive("save_every", save_every)
    fabric = fabric or _alone(next(model.parameters()).device)
    if batch_size < fabric.world_size:
        raise ValueError(f"batch_size must be at least {fabric.world_size}, one a process")
    usual = partial(SGD, lr=lr, momentum=0.9, weight_decay=5e-4)
    optimiser = optimizer(model) if optimizer else usual(model.parameters())
    checks.instance("what optimizer returns", optimiser, Optimizer)
    run = _Run(
        model, data, defense, fabric, optimiser, schedule, validate, batch_size,
        seed, workers, None if checkpoint is None else Path(checkpoint), save_every,
    )  # fmt: skip
    bar = tqdm(disable=not progress or fabric.global_rank > 0)
    counted = model.register_forward_hook(run.counter.watch)
    with counted, bar, inputs.train_mode(model), torch.enable_grad():
        run.train(epochs, bar)
    return run.done


def _alone(device: torch.device) -> Fabric:
    """One process on the model's device."""
    cuda = device.type == "cuda"
    return Fabric(accelerator=device.type, devices=[device.index] if cuda else 1)


@dataclass
class _Run:
    """One call of `fit`: what it trains, how far it is, and what it has counted."""

    model: nn.Module
    data: MapDataset
    defense: Defense
    fabric: Fabric
    optimiser: Optimizer
    schedule: Schedule | None
    validate: Callable[[nn.Module], object] | None
    batch_size: int
    seed: int
    workers: int
    checkpoint: Path | None
    save_every: float

    def __post_init__(self) -> None:
        if hasattr(self.defense, "prepare"):
            self.defense.prepare(len(self.data))
        self.counter, self.done, self.position = inputs.Gradients(), Fit(), 0
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
            **checkpoints.describe("optimizer", checkpoints.of_optimizer(self.optimiser)),
            **checkpoints.describe("defense", self.defense),
            "schedule": checkpoints.over_epochs(self.schedule),
            "validate": "None" if self.validate is None else "given",
            "data": checkpoints.of_data(self.data),
            "batch_size": checkpoints.of_number(self.batch_size),
            "seed": checkpoints.of_number(self.seed),
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
        gradients = at["gradients"] + self.counter.images
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
        self.tally["gradients"] += self.counter.images
        self.counter.images = 0
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
            self.counter.images = 0  # an attack that validates is no training
            values = [past["validation"] for past in self.done.history]
            values = [value for value in values if not math.isnan(value)]
            if entry["validation"] > max(values, default=-math.inf):
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
