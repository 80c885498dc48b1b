"""MNIST and released networks themselves, where the environment names folders that hold them."""

import os
from pathlib import Path

import pytest

from wotlab import data, evaluate, models

PUBLISHED = {
    "wong2019_mnist_vanilla.pth": 9889,
    "wong2019_mnist_adv_training.pth": 9728,
    "hu2020_mnist_adv_training.pth": 9277,
}


def test_the_real_mnist():
    if not (Path(os.environ.get("WOTLAB_DATA", "nowhere")) / "MNIST").exists():
        pytest.skip("WOTLAB_DATA names no folder with MNIST")
    images = data.load("mnist", "test", download=False)
    assert len(images) == 10_000 and images.tensors(slice(0, 5))[1].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize("file", PUBLISHED)
def test_published_networks_have_their_accuracy(file):
    folder = Path(os.environ.get("WOTLAB_CHECKPOINTS", "nowhere"))
    if not (folder / file).exists() or "WOTLAB_DATA" not in os.environ:
        pytest.skip("WOTLAB_CHECKPOINTS and WOTLAB_DATA name no folders with networks and MNIST")
    network = models.load_weights(models.build("wong-mnist"), folder / file)
    images = data.load("mnist", "test", download=False)
    assert evaluate.accuracy(network, images).count == PUBLISHED[file]
