"""Networks that ship: weights, cards, and the table that they are made from agree."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from wotlab import evaluate, models
from wotlab.experiments import recipes, zoo
from wotlab.models import _models

EVERY = pytest.mark.parametrize("name", list(recipes.RECIPES))


def test_what_ships_is_what_the_table_makes():
    assert models.shipped() == sorted(recipes.RECIPES)
    files = {path.name for path in models.SHIPPED.iterdir()}
    assert files == {f"{n}.{kind}" for n in recipes.RECIPES for kind in ("json", "safetensors")}
    assert sum(path.stat().st_size for path in models.SHIPPED.iterdir()) < 8e6


@EVERY
def test_a_card_says_what_its_recipe_says(name):
    told, recipe = models.card(name), recipes.RECIPES[name]
    assert told["name"] == name and told["command"].endswith(f"zoo --only {name}")
    for key in ("network", "num_classes", "in_channels", "start"):
        assert told[key] == getattr(recipe, key)
    assert told["training"] == recipe.told and len(told["history"]) == recipe.fit["epochs"]
    assert str(recipe.fit["epochs"]) + " epochs" in recipe.told
    assert set(told["robust"]) == set(recipe.judges)


@EVERY
def test_a_network_has_the_accuracy_of_its_card(name):
    network, told = models.load(name), models.card(name)
    assert not network.training and all(not m.training for m in network.modules())
    assert all(w.dtype == torch.float and w.requires_grad for w in network.parameters())
    stored = load_file(models.SHIPPED / f"{name}.safetensors")
    for key, w in network.state_dict().items():  # rounding to half came before, and is exact
        assert torch.equal(w.double(), stored[key].double())
    images = recipes.RECIPES[name].source[1]("test", None)
    assert vars(evaluate.accuracy(network.double(), images)) == told["clean"]
    found = zoo.measure(name, network, recipes.RECIPES[name].again)["robust"]
    for judge, again in told.get("again", told["robust"]).items():
        assert abs(found[judge]["count"] - again["count"]) <= 1
        assert found[judge]["total"] == again["total"]
        for share in (again, told["robust"][judge]):
            assert vars(evaluate.share(share["count"], share["total"])) == share


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"digits-standard.*got 'lenet'"):
        models.load("lenet")
    with pytest.raises(ValueError, match="name must"):
        models.card("../weights/digits-standard")


def test_weights_that_are_not_those_of_the_card_are_refused(tmp_path, monkeypatch):
    name = "digits-standard"
    for kind in ("json", "safetensors"):
        held = bytearray((models.SHIPPED / f"{name}.{kind}").read_bytes())
        if kind == "safetensors":
            held[-1] ^= 1
        (tmp_path / f"{name}.{kind}").write_bytes(held)
    monkeypatch.setattr(_models, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="not the file that its card describes"):
        models.load(name)


def test_one_command_makes_a_network_again(tmp_path):
    name = "digits-standard-4"
    command = [sys.executable, "-m", "wotlab.experiments", "zoo", "--only", name]
    done = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {f"{name}.json", f"{name}.safetensors"}
    made, told = json.loads((tmp_path / f"{name}.json").read_text()), models.card(name)
    assert made.keys() == told.keys()
    # another processor ends in other weights of the same kind
    assert abs(made["clean"]["value"] - told["clean"]["value"]) < 0.05


def test_a_place_where_no_folder_can_be_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        zoo.main(["--out", str(tmp_path / "file" / "below")])
    assert "argument --out: no folder can be made at" in capsys.readouterr().err
