"""The sweep on digits trains what its cases say, and records what stands."""

import pytest
import torch

from wotlab import evaluate, models, results
from wotlab.experiments import digits, recipes, zoo
from wotlab.experiments.runner import Run, perform


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Settings whose trainings are replaced by a network that ships; `asked`: their recipes."""
    asked = []

    def trained(recipe):
        asked.append(recipe)
        return models.load("digits-pgd-at-6").double(), [{"gradients": 1500}]

    monkeypatch.setattr(zoo, "trained", trained)
    settings = Run(
        data=tmp_path, checkpoints=tmp_path, out=tmp_path, images=1000,
        device=torch.device("cpu"), anew=False,
    )  # fmt: skip
    return settings, asked


def test_got_has_the_settings_of_its_cases(run, monkeypatch):
    settings, asked = run
    monkeypatch.setattr(digits, "FEW", 8)
    perform(settings, digits.got_settings(settings))
    found = results.table("digits-got-settings", "setting", "attack", folder=settings.out)
    made = {}
    for recipe in asked:
        assert recipe.start == "digits-pgd-at-6"
        made[recipe.told.split(",")[0]] = recipe.defense()
    assert {(case, k) for case in made for k in ("clean", "pgd-20", "apgd")} == set(found)
    for case, defense in made.items():
        cost = defense.term.cost
        beta = float(case.removeprefix("beta-")) if case.startswith("beta") else 10.0
        latent = "l2" if case.startswith("l2") else "cosine"
        kind = {"cosine-l1": "l1", "l2-l1": "l1", "kl-reversed": "reverse-kl"}.get(case, "kl")
        assert (defense.beta, cost.latent, cost.prediction) == (beta, latent, kind), case
        assert defense.latent == ("3" if case == "middle" else None), case
    x, y = (part[:8] for part in recipes.RECIPES["digits-pgd-at-6"].source[1]("test", None))
    right = evaluate.accuracy(models.load("digits-pgd-at-6").double(), (x.double(), y))
    assert found["middle", "clean"].value == 100 * right.value
    assert found["middle", "apgd"].value <= found["middle", "clean"].value
    assert found["middle", "clean"].samples == "8x8 digits, test images 0 to 7"
    perform(settings, digits.got_settings(settings))
    assert len(asked) == len(made)  # what is recorded is not trained again
