"""Data sets by name, as images in [0, 1]. Nothing that was downloaded is ever unpickled."""

from wotlab.data._data import NAMES, SCENES, load
from wotlab.data._images import ImageFolder, Images
from wotlab.data._published import IMAGENET10

__all__ = ["IMAGENET10", "NAMES", "SCENES", "ImageFolder", "Images", "load"]
