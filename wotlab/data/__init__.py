"""Data sets by name, as images in [0, 1]. Nothing that was downloaded is ever unpickled."""

from wotlab.data._data import CIFAR, NAMES, SCENES, TINY, Images, load
from wotlab.data._folders import IMAGENET10, ImageFolder

__all__ = ["CIFAR", "IMAGENET10", "NAMES", "SCENES", "TINY", "ImageFolder", "Images", "load"]
