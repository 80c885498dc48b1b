"""Numbers that nobody gives: those that the papers print, the documentation says, records rest on.

A number that is doubled by mistake changes results and breaks nothing; here it is noticed.
"""

import inspect

import pytest

from wotlab import (
    PatchCost,
    attacks,
    certify,
    evaluate,
    iwd,
    ot,
    projections,
    smoothing,
    training,
)
from wotlab.gibbs import Chain
from wotlab.transformations import Transformations

CLIMB = {"targeted": False, "loss": "ce", "early_stop": True}
SEARCH = {
    "loss": "ce", "steps": 250, "restarts": 6, "window": 9, "patience": 15, "step_size": 1.0,
    "momentum": 0.75,
}  # fmt: skip
NUMBERS = {
    # Goodfellow et al. (2015), Madry et al. (2018): no start of its own, no restart unless asked
    attacks.fgsm: {"targeted": False, "loss": "ce"},
    attacks.pgd: CLIMB | {
        "steps": 40, "rule": "steepest", "random_start": False, "restarts": 0, "repaired": True,
        "projection": projections.constrained_sinkhorn, "step_size": None,
    },
    attacks.mirror_ascent: CLIMB | {"steps": 100, "step_size": 1.0, "momentum": 0.0},
    attacks.climb: {"early_stop": True},
    attacks.Mirror: {"momentum": 0.0, "forget": 0.0, "noise": 0.0},
    attacks.transport: SEARCH | {"targeted": False},
    attacks.radius: SEARCH | {"ball": None},
    attacks.frank_wolfe: CLIMB | {"steps": 300, "reg": 1e-3, "published": False},  # Wu (2020)
    attacks.langevin: {"targeted": False, "steps": 40, "random_start": True, "early_stop": True},
    attacks.adef: {  # Alaifari et al. (2019)
        "targeted": False, "steps": 100, "candidates": 9, "sigma": 0.5, "overshoot": 1.2,
        "early_stop": True,
    },
    attacks.stadv: {  # Xiao et al. (2018)
        "targeted": False, "loss": "margin", "optimizer": "lbfgs", "steps": 200, "tau": 0.05,
        "lr": 0.05, "early_stop": True,
    },
    attacks.iwda: {  # Tan et al. (2021); critics as in Gulrajani et al. (2017)
        "targeted": False, "tau": 0.1, "steps": 100, "critic_steps": 5, "most_scales": 3,
        "samples": 1, "width": 32, "lr": 5e-4, "penalty": 10.0, "early_stop": True,
    },
    attacks.eot: {"samples": 8},
    attacks.library: {"name": "autoattack", "seed": 0},
    attacks.transfer: {"attack": attacks.pgd},
    projections.constrained_sinkhorn: {  # Hu et al. (2020)
        "reg": 1e-3, "tol": 0.01, "rule": "plan", "max_iter": 2000, "bound": True,
    },
    projections.projected_sinkhorn: {  # Wong et al. (2019)
        "reg": 1e-3, "tol": 1e-4, "max_iter": 2000, "clamp": False,
    },
    projections.dual_projection: {"tol": 1e-6, "max_iter": 2000, "bound": True},
    projections.exact_projection: {"bound": True},
    projections.unbalanced_sinkhorn: {  # Subramanyam (2022)
        "variant": "corrected", "gamma": 0.5, "reg": 0.001, "tau": 0.01, "max_iter": None,
        "tol": 1e-9,
    },
    training.TRADES: {"beta": 6.0},  # Zhang et al. (2019)
    training.MART: {"beta": 5.0},  # Wang et al. (2020)
    training.AWP: {"gamma": 5e-3},  # Wu, Xia and Wang (2020)
    training.LBGAT: {"alpha": 0.0, "schedule": None},  # Cui et al. (2021)
    training.WassersteinAT: {"noise": 0.0},
    training.FastAT: {"step": 1.25},  # Wong, Rice and Kolter (2020)
    training.FreeAT: {"repeats": 8},  # Shafahi et al. (2019)
    training.IWDD: {"beta": 0.1},  # Tan et al. (2021)
    training.GenerativeIWDD: {
        "beta": 0.1, "tau": 0.1, "critic_steps": 5, "lr": 5e-4, "penalty": 10.0,
    },
    training.GOT: {  # GOT
        "beta": 10.0, "alpha": 1.0, "clean": 0.0, "ascent": 1, "lr": 1e-3, "hold": True,
    },
    training.JointTransport: {"kind": "semi-dual", "reg": 0.1, "match_labels": False},
    training.JointCost: {"latent": "cosine", "prediction": "kl", "lam": 1.0},
    training.AdversarialTransport: {"copies": 1, "steps": 1, "place": "cpu"},
    training.fit: {"batch_size": 128, "lr": 0.1, "seed": 0, "save_every": 300.0},
    evaluate.certified_margin: {"window": 5},
    evaluate.Threat: {"unit": "eps"},
    evaluate.Field: {"forward": 0, "backward": 0, "seconds": 0.0},
    evaluate.certified_radius: {"window": 5, "steps": 5},
    evaluate.success_rate: {"targeted": False},
    smoothing.certify: {  # Cohen et al. (2019)
        "samples": (100, 10_000), "alpha": 0.001, "ground_cost": None, "batch_size": 1000,
    },
    smoothing.predict: {"samples": 1000, "alpha": 0.001, "batch_size": 1000},
    smoothing.split: {"levels": 255, "seed": 0},
    smoothing.noisy_l1: {"levels": 255, "seed": 0},
    smoothing.certify_l1: {"levels": 255, "seed": 0, "batch_size": 1000},
    ot.sinkhorn: {"tol": 1e-6, "max_iter": 10_000},
    ot.sinkhorn_divergence: {"tol": 1e-6, "max_iter": 10_000},
    ot.unbalanced_sinkhorn: {"marginals": "kl", "tol": 1e-6, "max_iter": 10_000},
    ot.c_transform: {"reg": 0},
    ot.semi_dual: {"reg": 0},
    iwd.critic: {"steps": 500, "lr": 5e-4, "penalty": 10.0},
    iwd.entropic: {"reg": 0.05, "max_iter": 1000},
    iwd.sliced: {"directions": 100},
    iwd.tiled: {"tile": 32},
    Transformations: {"rotation": 15.0, "translation": 0.05, "scaling": 0.1, "noise": 0.02},
    Chain: {"rule": "reflected", "lam": 10.0, "sigma": 0.2, "eta": 0.2},
    ot.GroundCost: {"window": 5, "p": 1, "norm": 2},
    PatchCost: {"size": 3, "stride": 1, "norm": 1},
    certify: {"exact": True, "tolerance": 1e-4},
}  # fmt: skip


@pytest.mark.parametrize("made", NUMBERS, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_what_is_taken_where_nothing_is_given(made):
    parameters = inspect.signature(made).parameters
    assert {name: parameters[name].default for name in NUMBERS[made]} == NUMBERS[made]


POSITIONAL = {attacks.Mirror, training.JointCost}  # the paper's lambda; a rule of our own


def test_numbers_of_attacks_projections_and_defenses_are_given_by_name():
    """A number in a wrong place would be taken for another one."""
    for made in (f for f in NUMBERS if f not in POSITIONAL):
        if made.__module__.split(".")[1] in ("attacks", "projections", "training"):
            for name, one in inspect.signature(made).parameters.items():
                if isinstance(one.default, bool | int | float):
                    assert one.kind is one.KEYWORD_ONLY, (made, name)


HARMLESS = {  # arguments that change how a result is made, not which
    *("progress", "batch_size", "workers", "generator", "dtype", "objective", "loss"),
}


def test_no_number_is_left_out():
    """A new attack, projection, defense or measure has its line above."""
    for module in (attacks, projections, training, evaluate, ot, iwd, smoothing):
        for name in module.__all__:
            made = getattr(module, name)
            if not callable(made) or made in NUMBERS:
                missing = {}
            else:
                missing = {
                    k: p.default
                    for k, p in inspect.signature(made).parameters.items()
                    if isinstance(p.default, bool | int | float | str) and k not in HARMLESS
                }
            assert not missing, (name, missing)
