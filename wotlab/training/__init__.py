"""Training: one loop, `fit`, on one device or many; a defense says what the loss is.

A defense is an object with `loss(model, x, y, index)`: the mean loss of the minibatch x (B, C,
H, W), y (B,), whose images have the places `index` (B,) in the data set. It may also have

- `at_epoch(epoch)`, called before each minibatch: 2.5 is the middle of the third epoch,
- `prepare(size)`, called once with the size of the data set,
- `repeats`, the number of steps on each minibatch,
- `state_dict()` and `load_state_dict(state)`: what goes into checkpoints,
- `gather(fabric)`, called before each checkpoint and after each epoch: share its state with the
  other processes.

All its attributes are settings, and a checkpoint is continued only by a defense with the same ones.
What changes from minibatch to minibatch is a tensor, a network or an optimizer, goes into
`state_dict`, or has a name that begins with an underscore.
"""

from wotlab.training._adversarial_transport import AdversarialTransport
from wotlab.training._ates import ATES
from wotlab.training._awp import AWP
from wotlab.training._defenses import (
    MART,
    PGDAT,
    TRADES,
    Defense,
    NoiseAugmentation,
    Standard,
    pgd_adversary,
)
from wotlab.training._fast import FastAT, FreeAT
from wotlab.training._fit import fit
from wotlab.training._generative import GenerativeIWDD
from wotlab.training._got import GOT
from wotlab.training._lbgat import LBGAT
from wotlab.training._representation_transport import JointCost, JointTransport
from wotlab.training._run import Fit
from wotlab.training._transport_defenses import IWDD, WassersteinAT

__all__ = [
    "ATES",
    "AWP",
    "GOT",
    "IWDD",
    "LBGAT",
    "MART",
    "PGDAT",
    "TRADES",
    "AdversarialTransport",
    "Defense",
    "FastAT",
    "Fit",
    "FreeAT",
    "GenerativeIWDD",
    "JointCost",
    "JointTransport",
    "NoiseAugmentation",
    "Standard",
    "WassersteinAT",
    "fit",
    "pgd_adversary",
]
