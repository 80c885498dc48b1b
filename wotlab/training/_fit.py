"""`fit`, the one entry to training."""

from collections.abc import Callable
from functools import partial
from numbers import Integral
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from wotlab._base import checks
from wotlab._base.dataset import as_dataset
from wotlab._base.keeping import keeping
from wotlab.training import _inputs as inputs
from wotlab.training._defenses import Defense, Schedule, Standard
from wotlab.training._run import Fit, Run


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
    keep_best: bool = True,
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
        better, such as the accuracy under an attack on images kept aside.
    keep_best : bool
        With `validate`, the model ends with the weights of the best epoch; NaN is never the best.
        False: with those of the last one, such as where test images are watched.
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
    >>> train, test = data.load("digits", "train"), data.load("digits")
    >>> model = models.build("digits-small", seed=0)
    >>> fit = training.fit(model, train.tensors(), epochs=3, batch_size=64)
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
    checks.flags(keep_best=keep_best)
    fabric = fabric or _alone(next(model.parameters()).device)
    if batch_size < fabric.world_size:
        raise ValueError(f"batch_size must be at least {fabric.world_size}, one a process")
    usual = partial(SGD, lr=lr, momentum=0.9, weight_decay=5e-4)
    optimiser = optimizer(model) if optimizer else usual(model.parameters())
    checks.instance("what optimizer returns", optimiser, Optimizer)
    run = Run(
        model, data, defense, fabric, optimiser, schedule, validate, keep_best, batch_size,
        seed, workers, None if checkpoint is None else Path(checkpoint), save_every,
    )  # fmt: skip
    bar = tqdm(disable=not progress or fabric.global_rank > 0)
    counted = model.register_forward_hook(run.counter.see)
    with counted, bar, inputs.train_mode(model), keeping(), torch.enable_grad():
        run.train(epochs, bar)
    return run.done


def _alone(device: torch.device) -> Fabric:
    """One process on the model's device."""
    cuda = device.type == "cuda"
    return Fabric(accelerator=device.type, devices=[device.index] if cuda else 1)
