"""Experiments on internal distance, on small folders of images that the test makes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_pil_image

from wotlab import InternalWassersteinBall, LinfBall, attacks, data, results
from wotlab import iwd as distance
from wotlab.experiments import critics, internal, iwd, photographs, runner
from wotlab.experiments.iwd import Setting, settings
from wotlab.experiments.runner import perform
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
        monkeypatch.setattr(iwd, name, value)
    monkeypatch.setattr(iwd, "SMALL", "colours")
    monkeypatch.setitem(runner.TITLES, "colours", "three colours")
    monkeypatch.setattr(iwd, "FEW", 6)
    monkeypatch.setattr(iwd, "MANY", 6)
    monkeypatch.setattr(iwd, "DISTANCES", (0.4, 27.0))
    short = iwd.ATTACKS | {
        "adef": (partial(attacks.adef, steps=3), iwd.any_image),
        "iwda": (partial(iwd.ATTACKS["iwda"][0], steps=2), iwd.any_image),
    }
    monkeypatch.setattr(iwd, "ATTACKS", {name: short[name] for name in FEW})
    (tmp_path / "out").mkdir()
    return runner.Run(tmp_path, tmp_path, tmp_path / "out", 6, torch.device("cpu"), False)


def done(experiment, run):
    return perform(run, experiment(run))


def found(what, run):
    """The records by their names, without the network's."""
    records = results.read(what, run.out)
    return {results.name(r.keys).removeprefix("cifar-small-"): r for r in records}


def goes_on_where_it_was(experiment, run):
    before = {path: path.stat().st_mtime_ns for path in run.out.rglob("*.json")}
    done(experiment, run)
    return before == {path: path.stat().st_mtime_ns for path in run.out.rglob("*.json")}


def test_a_part_of_a_folder_holds_every_class(run):
    here = replace(run, dataset="colours")
    assert here.training_images(12)[1].bincount().tolist() == [4, 4, 4]
    assert here.training_images(10)[1].bincount().tolist() == [4, 3, 3]
    assert len(here.training_images(1000)[1]) == 36
    assert here.training_images(None)[1].bincount().tolist() == [12, 12, 12]
    assert here.test_images()[1].bincount().tolist() == [2, 2, 2]


def test_attacks_count_what_is_near_and_go_on(run):
    done(iwd.attack_all, run)
    rows = found("iwd-attacks", run)
    assert len(rows) == 2 * len(FEW)
    for name in FEW[1:]:
        near, far = (rows[f"{name}-within-{d:g}"] for d in (0.4, 27))
        assert near.value <= far.value
        assert near.details["total"] + near.details["misread_from_the_start"] == 6
    assert goes_on_where_it_was(iwd.attack_all, run)


def test_what_is_too_far_does_not_count(run):
    setting = next(settings(run, 6))
    model, (x, y) = setting.model("natural"), setting.run.test_images()
    for d in (0.2, 1.0):
        seen = iwd.near(iwd.perform("fgsm", model, x, y, 4 * d), d)
        assert torch.allclose(seen.cost, distance.exact(x, seen.x_adv))
        assert InternalWassersteinBall(d).contains(x[seen.success], seen.x_adv[seen.success]).all()


def test_table_1_counts_at_any_distance_and_at_equal_ones(run, monkeypatch):
    monkeypatch.setitem(iwd.COLUMNS, 1, FEW)
    monkeypatch.setitem(iwd.ROWS, 1, ("natural", "fast"))
    table = partial(iwd.success, 1)
    done(table, run)
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
    target = iwd.another(y, 4)
    assert (target != y).all() and torch.equal(target, iwd.another(y, 4))
    assert sorted(target[y == 0].unique().tolist()) == [1, 2, 3]


def test_defenses_go_on_from_one_network(run, monkeypatch):
    monkeypatch.setattr(iwd, "JUDGES", {"pgd-10": iwd.JUDGES["pgd-10"]})
    done(iwd.defend, run)
    rows = found("iwd-table-3", run)
    names = ("natural", "free", "fast", "pgd", "trades", "mart", "iwdd", "iwdd-generator")
    assert set(rows) == {f"{name}-{judge}" for name in names for judge in ("clean", "pgd-10")}
    assert rows["iwdd-clean"].details["start"] == "cifar-small-natural"
    assert "InternalWassersteinBall(eps=0.1" in rows["iwdd-clean"].details["defense_ball"]
    assert "LinfBall" in rows["iwdd-pgd-10"].details["budget"]
    assert isinstance(next(settings(run, 6)).trial("natural").defense, Standard)
    monkeypatch.setattr(iwd, "BETAS", (1.0,))
    done(iwd.beta, run)
    assert set(found("iwd-beta", run)) == {"beta-1-clean", "beta-1-pgd-10"}


def test_epochs_are_of_all_images_and_have_records_of_their_own(run, monkeypatch):
    monkeypatch.setattr(iwd, "JUDGES", {})
    few = {name: iwd.DEFENSES[name] for name in ("natural", "fast", "iwdd")}
    monkeypatch.setattr(iwd, "DEFENSES", few)
    longer = replace(run, epochs=2)
    for each in (run, longer):
        done(iwd.defend, each)
    rows = found("iwd-table-3", run)
    assert set(rows) == {f"{k}-clean" for k in ("natural", "fast", "iwdd")} | {
        "fast-epochs-2-clean", "iwdd-epochs-2-clean"
    }  # fmt: skip
    took = {k.removesuffix("-clean"): r.details for k, r in rows.items()}
    assert took["iwdd"]["training_images"] == 12 and took["iwdd-epochs-2"]["training_images"] == 36
    # the same work: two gradients an image with one step, and of fast training
    assert took["fast-epochs-2"]["epochs"] == took["iwdd-epochs-2"]["epochs"] == 2
    assert goes_on_where_it_was(iwd.defend, longer)
    cuda = Setting(replace(longer, device=torch.device("cuda")), "cifar-small")
    assert not cuda.whole and replace(cuda, run=replace(cuda.run, epochs=None)).whole


def test_networks_of_the_paper_where_they_are_at_hand(run, monkeypatch):
    """Ten folders of ImageNet's name, and in place of a published network one made here."""
    write_images(run.data / "imagenet", data.IMAGENET10, {"train": 1, "val": 1}, 80)
    cuda = replace(run, device=torch.device("cuda"))
    assert [s.network for s in settings(cuda, 6)] == ["resnet101", "inception-v3", "cifar-small"]
    monkeypatch.setitem(iwd.SIDES, "resnet101", 72)
    setting = Setting(replace(run, dataset="imagenet10", size=72, images=10), "resnet101")

    def build(name, weights):
        torch.manual_seed(0)
        return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 1000))

    monkeypatch.setattr(iwd.models, "build", build)
    model, x, _, counted = setting.right_ones(setting.undefended)
    assert model(x).shape[1] == 10 and x.shape[1:] == (3, 72, 72)
    assert len(x) + counted["misread_from_the_start"] == 10
    monkeypatch.setitem(iwd.COLUMNS, 1, ("fgsm",))
    monkeypatch.setitem(iwd.COLUMNS, 2, ("fgsm",))
    monkeypatch.setattr(iwd, "settings", lambda run, few: iter([setting]))
    row = replace(run, only="resnet101-natural-*")
    perform(row, iwd.success(1, row))
    rows = {results.name(r.keys): r for r in results.read("iwd-table-1", run.out)}
    assert set(rows) >= {f"resnet101-natural-fgsm-{kind}" for kind in ("untargeted", "targeted")}
    # the paper's table 1 is on all of ImageNet, its other tables are on the ten classes
    assert all(r.printed is None for r in rows.values())
    cells = {c.name: c for table in (partial(iwd.success, 2), iwd.defend) for c in table(run)}
    assert cells["resnet101-pgd-fgsm-untargeted"].printed == 9.53
    assert cells["resnet101-pgd-fgsm-untargeted-within"].printed is None
    assert cells["resnet101-iwdd-clean"].printed == 71.80


def test_what_is_walked_back_breaks_and_is_nearer():
    model, x, y, counted = internal.right_ones(
        replace(plain_run(4), dataset="mnist-5k"), "mnist-standard"
    )
    assert counted == {"misread_from_the_start": 0}
    z = attacks.pgd(model, x, y, LinfBall(0.3), early_stop=False).x_adv
    back = internal.walked_back(model, x, y, z)
    assert (model(back).argmax(1) != y).all()
    share = (back - x).flatten(1).norm(dim=1) / (z - x).flatten(1).norm(dim=1)
    assert (share < 0.9).all()
    closer = x + (share * 0.99)[:, None, None, None] * (z - x)
    assert (model(closer).argmax(1) == y).all()


def plain_run(images):
    return runner.Run(None, None, None, images, torch.device("cpu"), False)


def test_settings_tell_how_far_each_image_had_to_go():
    run = plain_run(3)
    cells = {cell.name: cell for cell in internal.settings(run)}
    cell = cells["mnist-standard-pgd-eps-0.1"]
    share, told = cell.measure(*cell.given())
    hit = [far is not None for far in told["iwd"]]
    assert share.count == sum(hit) and share.total == 3
    for k, broke in enumerate(hit):
        if broke:
            assert told["walked_back"][k] <= told["iwd"][k] <= 9 * 0.1
            assert told["linf"][k] <= 0.1 + 1e-4
        else:
            assert told["walked_back"][k] is None


def test_critics_learn_as_their_penalty_says(monkeypatch):
    monkeypatch.setattr(critics, "SEEN", (150,))
    cells = {cell.name: cell for cell in critics.critics(plain_run(1))}
    told = {
        name: cells[f"two-digits-{name}"].measure(*cells[f"two-digits-{name}"].given())
        for name in critics.PENALTIES
    }
    assert told["added-flat-start"][0] < 0.1 and told["added"][0] > 10
    assert told["per-patch"][1]["slope_linf"] < 2 < told["whole-image"][1]["slope_l2"]


def test_photographs_are_read_from_their_list(tmp_path):
    folder = tmp_path / "imagenet" / "val" / "n1"
    folder.mkdir(parents=True)
    to_pil_image(torch.full((3, 80, 90), 0.5)).save(folder / "a.png")
    with pytest.raises(runner.Refused, match="no list"):
        photographs.read(tmp_path / "imagenet")
    head = "file\tlabel (from 0)\tauthor\tlicence\tsource\n"
    (tmp_path / "imagenet" / "CREDITS.tsv").write_text(head + "n1/a.png\t425\tSomebody\tCC\tweb\n")
    whole, y, who = photographs.read(tmp_path / "imagenet")
    assert photographs.read(tmp_path / "imagenet")[0] is whole  # once for all sizes
    x = photographs.cut(whole, 64)
    assert x.shape == (1, 3, 64, 64) and y.tolist() == [425] and who == ["Somebody"]
    assert (x - 0.5).abs().max() < 0.01
