"""Experiments on internal distance, on small folders of images that the test makes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_pil_image
from wotlab.experiments.iwd_networks import Setting, settings

from wotlab import InternalWassersteinBall, attacks, data, iwd, results
from wotlab.experiments import iwd_attacks, iwd_networks, iwd_tables, runner
from wotlab.training import Standard

FEW = ("fgsm", "adef", "iwda")


def write_images(folder, classes, splits, size):
    """Images that are mostly red, green or blue."""
    draw = torch.Generator().manual_seed(0)
    for split, count in splits.items():
        for k, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for n in range(count):
                image = 0.5 * torch.rand(3, size, size, generator=draw)
                image[k % 3] += 0.5
                to_pil_image(image).save(folder / split / name / f"{n}.png")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Three classes of 32x32, and attacks that are short."""
    write_images(tmp_path / "colours", "abc", {"train": 12, "test": 4}, 32)
    for name, value in (("FIRST", 2), ("IMAGES", 12), ("EPOCHS", 1), ("STEPS", 1)):
        monkeypatch.setattr(iwd_networks, name, value)
    monkeypatch.setattr(iwd_networks, "SMALL", "colours")
    monkeypatch.setitem(runner.TITLES, "colours", "three colours")
    monkeypatch.setattr(iwd_attacks, "FEW", 6)
    monkeypatch.setattr(iwd_tables, "MANY", 6)
    monkeypatch.setattr(iwd_attacks, "DISTANCES", (0.4, 27.0))
    short = iwd_attacks.ATTACKS | {
        "adef": (partial(attacks.adef, steps=3), iwd_attacks.any_image),
        "iwda": (partial(iwd_attacks.ATTACKS["iwda"][0], steps=2), iwd_attacks.any_image),
    }
    monkeypatch.setattr(iwd_attacks, "ATTACKS", {name: short[name] for name in FEW})
    (tmp_path / "out").mkdir()
    return runner.Run(tmp_path, tmp_path, tmp_path / "out", 6, torch.device("cpu"), False)


def found(what, run):
    return {r.case.removeprefix("cifar-small-"): r for r in results.read(what, run.out)}


def goes_on_where_it_was(experiment, run):
    before = {path: path.stat().st_mtime_ns for path in run.out.iterdir()}
    experiment(run)
    return before == {path: path.stat().st_mtime_ns for path in run.out.iterdir()}


def test_a_part_of_a_folder_holds_every_class(run):
    here = replace(run, dataset="colours")
    assert here.training_images(12)[1].bincount().tolist() == [4, 4, 4]
    assert here.training_images(10)[1].bincount().tolist() == [4, 3, 3]
    assert len(here.training_images(1000)[1]) == 36
    assert here.training_images(None)[1].bincount().tolist() == [12, 12, 12]
    assert here.test_images()[1].bincount().tolist() == [2, 2, 2]


def test_attacks_count_what_is_near_and_go_on(run):
    iwd_attacks.attack_all(run)
    rows = found("iwd-attacks", run)
    assert len(rows) == 2 * len(FEW)
    for name in FEW[1:]:
        near, far = (rows[f"{name}-within-{d:g}"] for d in (0.4, 27))
        assert near.value <= far.value
        assert near.details["total"] + near.details["misread_from_the_start"] == 6
    assert goes_on_where_it_was(iwd_attacks.attack_all, run)


def test_what_is_too_far_does_not_count(run):
    setting = next(settings(run))
    model, (x, y) = setting.model("natural"), setting.run.test_images()
    for d in (0.2, 1.0):
        done = iwd_attacks.near(iwd_attacks.perform("fgsm", model, x, y, 4 * d), d)
        assert torch.allclose(done.cost, iwd.exact(x, done.x_adv))
        assert InternalWassersteinBall(d).contains(x[done.success], done.x_adv[done.success]).all()


def test_table_1_counts_at_any_distance_and_at_equal_ones(run, monkeypatch):
    monkeypatch.setitem(iwd_tables.COLUMNS, 1, FEW)
    monkeypatch.setitem(iwd_tables.ROWS, 1, ("natural", "fast"))
    table = partial(iwd_tables.success, 1)
    table(run)
    rows = found("iwd-table-1", run)
    kinds = ("natural-{}-untargeted", "natural-{}-targeted", "fast-{}-untargeted")
    cases = [kind.format(name) for kind in kinds for name in FEW]
    assert set(rows) == {f"{case}{suffix}" for case in cases for suffix in ("", "-within")}
    for case in cases:
        assert rows[f"{case}-within"].value <= rows[case].value
        assert rows[case].printed is None  # the paper's networks are others
    assert goes_on_where_it_was(table, run)


def test_targets_are_other_classes_that_stay_the_same():
    y = torch.arange(4).repeat(20)
    target = iwd_tables.another(y, 4)
    assert (target != y).all() and torch.equal(target, iwd_tables.another(y, 4))
    assert sorted(target[y == 0].unique().tolist()) == [1, 2, 3]


def test_defenses_go_on_from_one_network(run, monkeypatch):
    monkeypatch.setattr(iwd_tables, "JUDGES", {"pgd-10": iwd_tables.JUDGES["pgd-10"]})
    iwd_tables.defend(run)
    rows = found("iwd-table-3", run)
    names = ("natural", "free", "fast", "pgd", "trades", "mart", "iwdd", "iwdd-generator")
    assert set(rows) == {f"{name}-{judge}" for name in names for judge in ("clean", "pgd-10")}
    assert rows["iwdd-clean"].details["start"] == "cifar-small-natural"
    assert "InternalWassersteinBall(eps=0.1" in rows["iwdd-clean"].details["defense_ball"]
    assert "LinfBall" in rows["iwdd-pgd-10"].details["budget"]
    assert isinstance(next(settings(run)).trial("natural").defense, Standard)
    iwd_tables.beta(run, (1.0,))
    assert set(found("iwd-beta", run)) == {"beta-1-clean", "beta-1-pgd-10"}


def test_epochs_are_of_all_images_and_have_records_of_their_own(run, monkeypatch):
    monkeypatch.setattr(iwd_tables, "JUDGES", {})
    monkeypatch.setattr(iwd_tables, "DEFENSES", ("natural", "fast", "iwdd"))
    longer = replace(run, epochs=2)
    for each in (run, longer):
        iwd_tables.defend(each)
    rows = found("iwd-table-3", run)
    assert set(rows) == {f"{k}-clean" for k in ("natural", "fast", "iwdd")} | {
        "fast-2-epochs-clean", "iwdd-2-epochs-clean"
    }  # fmt: skip
    took = {k.removesuffix("-clean"): r.details for k, r in rows.items()}
    assert took["iwdd"]["training_images"] == 12 and took["iwdd-2-epochs"]["training_images"] == 36
    # the same work: two gradients an image with one step, and of fast training
    assert took["fast-2-epochs"]["epochs"] == took["iwdd-2-epochs"]["epochs"] == 2
    assert goes_on_where_it_was(iwd_tables.defend, longer)
    cuda = Setting(replace(longer, device=torch.device("cuda")), "cifar-small")
    assert not cuda.whole and replace(cuda, run=replace(cuda.run, epochs=None)).whole


def test_networks_of_the_paper_where_they_are_at_hand(run, monkeypatch):
    """Ten folders of ImageNet's name, and in place of a published network one made here."""
    write_images(run.data / "imagenet", data.IMAGENET10, {"train": 1, "val": 1}, 80)
    cuda = replace(run, device=torch.device("cuda"))
    assert [s.network for s in settings(cuda)] == ["resnet101", "inception-v3", "cifar-small"]
    monkeypatch.setitem(iwd_networks.SIDES, "resnet101", 72)
    setting = Setting(replace(run, dataset="imagenet10", size=72, images=10), "resnet101")

    def build(name, weights):
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 1000))

    monkeypatch.setattr(iwd_networks.models, "build", build)
    model, x, _, counted = iwd_attacks.right_ones(setting, setting.undefended)
    assert model(x).shape[1] == 10 and x.shape[1:] == (3, 72, 72)
    assert len(x) + counted["misread_from_the_start"] == 10
    monkeypatch.setitem(iwd_tables.COLUMNS, 1, ("fgsm",))
    iwd_tables.attack_row(1, setting, "natural")
    rows = {r.case: r for r in results.read("iwd-table-1", run.out)}
    assert set(rows) >= {f"resnet101-natural-fgsm-{kind}" for kind in ("untargeted", "targeted")}
    # the paper's table 1 is on all of ImageNet, its other tables are on the ten classes
    assert iwd_tables.of_paper(1, setting, "natural", attack="fgsm") is None
    assert iwd_tables.of_paper(2, setting, "pgd", attack="fgsm") == 9.53
    assert iwd_tables.of_paper(3, setting, "iwdd", attack="clean") == 71.80
