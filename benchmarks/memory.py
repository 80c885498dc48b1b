"""How much memory does `transport` take beside its network? Peaks of fresh processes, in MiB.

A peak is the most that a process has held at once (Linux: VmHWM). That of the attack is compared
with that of a process which imports the same, builds the same network and takes one gradient of
one minibatch: what is above it is the attack's own, its clean images and its results included.

1. 10,000 digits on Hu's network at eps * 784 = 100, batches of 100, all by default but for fewer
   steps; and, to show that their number does not matter, 100 of them with both numbers of steps.
   MNIST test images and the released network where they are at hand; else scikit-learn's digits,
   enlarged and repeated, and the same network with random weights.
2. One colour photograph of 224x224 in a window of 9, on a ResNet-18 with random weights.

    python benchmarks/memory.py
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from common import mnist, options_of_networks, parse, released, save, timed
from torch import Tensor, nn

from wotlab import WassersteinBall, attacks, models

EPS, DIGITS, BATCH = 100 / 784, 10_000, 100
FEW = {"steps": 5, "restarts": 2}
SIZE, WINDOW = 224, 9


def digits(given, count: int) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A network, as many images, their labels, and what they are."""
    x, y, samples = mnist("test", slice(0, count), given.data)
    if len(x) < count:
        times = -(-count // len(x))
        x, y = x.repeat(times, 1, 1, 1)[:count], y.repeat(times)[:count]
        samples = f"{samples}, repeated"
    try:
        model = released("hu2020", given.checkpoints)
    except FileNotFoundError:
        model = models.build("wong-mnist", seed=0).eval()
    return model, x, y, samples


def photograph(given, count: int) -> tuple[nn.Module, Tensor, Tensor, str]:
    """The same for a photograph; its label is what the network says."""
    from sklearn.datasets import load_sample_image
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    image = torch.from_numpy(load_sample_image("china.jpg").copy())[:SIZE, :SIZE]
    x = image.movedim(2, 0)[None].float() / 255
    with torch.no_grad():
        y = model(x).argmax(1)
    return model, x, y, "scikit-learn's china.jpg, its upper left"


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """One, of the cross-entropy."""
    z = x.clone().requires_grad_()
    torch.autograd.grad(nn.functional.cross_entropy(model(z), y), z)


def held(given, make, count: int, settings: dict | None) -> tuple[float, float, str]:
    """MiB that this process holds at most, seconds of the attack, and what the images are.

    Without settings: one gradient in place of the attack.
    """
    torch.set_num_threads(given.threads)
    model, x, y, samples = make(given, count)
    gradient(model, x[:BATCH], y[:BATCH])
    seconds = 0.0
    if settings is not None:
        ball = WassersteinBall(EPS)
        seconds, _ = timed(lambda: attacks.transport(model, x, y, ball, **settings))
    status = Path("/proc/self/status").read_text().splitlines()
    most = next(line for line in status if line.startswith("VmHWM")).split()[1]
    return int(most) / 1024, seconds, samples


def peak(*call) -> tuple[float, float, str]:
    """The same in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(held, *call).result()


def main() -> None:
    given = parse(options_of_networks(__doc__))
    alone, _, _ = peak(given, digits, BATCH, None)
    most, seconds, samples = peak(given, digits, DIGITS, FEW)
    few, default = (peak(given, digits, BATCH, each)[0] for each in (FEW, {}))
    save(
        given.out, "attack-memory", {"images": DIGITS}, most - alone, "MiB", samples, seconds,
        network_mebibytes=alone, peak_mebibytes=most, eps=EPS, batch_size=BATCH, **FEW,
        first_batch_mebibytes=few - alone, first_batch_mebibytes_by_default=default - alone,
    )  # fmt: skip
    alone, _, _ = peak(given, photograph, 1, None)
    most, seconds, samples = peak(given, photograph, 1, {"window": WINDOW})
    save(
        given.out, "attack-memory", {"images": 1, "size": SIZE, "window": WINDOW}, most - alone,
        "MiB", samples, seconds, network_mebibytes=alone, peak_mebibytes=most, eps=EPS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
