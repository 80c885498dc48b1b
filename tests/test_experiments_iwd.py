"""Experiments on internal distance, on a small folder of images that the test makes."""

from functools import partial

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from wotlab import InternalWassersteinBall, attacks, results
from wotlab.experiments import frame, iwd
from wotlab.training import Standard


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Three classes of 32x32: images that are mostly red, green or blue."""
    draw = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for k in range(3):
            folder = tmp_path / "cifar10-jpeg" / split / f"class-{k}"
            folder.mkdir(parents=True)
            for n in range(count):
                image = 0.5 * torch.rand(3, 32, 32, generator=draw)
                image[k] += 0.5
                to_pil_image(image).save(folder / f"{n}.png")
    for name, value in (("START", 2), ("IMAGES", 12), ("EPOCHS", 1), ("STEPS", 1), ("FEW", 6)):
        monkeypatch.setattr(iwd, name, value)
    monkeypatch.setattr(iwd, "DISTANCES", (0.4, 27.0))
    free = {"adef": partial(attacks.adef, steps=3), "iwda": partial(iwd.iwda, steps=2)}
    monkeypatch.setattr(iwd, "FREE", free)
    monkeypatch.setattr(iwd, "BOUNDED", {k: iwd.BOUNDED[k] for k in ("fgsm", "pgd-10")})
    (tmp_path / "out").mkdir()
    return frame.Run(tmp_path, tmp_path, tmp_path / "out", 6, torch.device("cpu"), False)


def test_a_part_of_a_folder_holds_every_class(run):
    here = frame.replace(run, dataset="cifar10-jpeg")
    assert here.some(here.load("train"), 12)[1].bincount().tolist() == [4, 4, 4]
    assert here.some(here.load("train"), None)[1].bincount().tolist() == [12, 12, 12]
    assert here.test_images()[1].bincount().tolist() == [2, 2, 2]


def test_attacks_count_what_is_near_and_go_on(run):
    iwd.attack_all(run)
    found = {r.case: r for r in results.read("iwd-attacks", run.out)}
    assert len(found) == 2 * (len(iwd.BOUNDED) + len(iwd.FREE))
    for name in iwd.FREE:
        near, far = (found[f"cifar-small-{name}-within-{d:g}"] for d in (0.4, 27))
        assert near.value <= far.value
        assert near.details["total"] + near.details["misread_from_the_start"] == 6
    before = {path: path.stat().st_mtime_ns for path in run.out.iterdir()}
    iwd.attack_all(run)
    assert before == {path: path.stat().st_mtime_ns for path in run.out.iterdir()}


def test_within_refuses_what_is_too_far(run):
    here = frame.replace(run, dataset="cifar10-jpeg")
    x, y = here.test_images()
    _, model, _ = next(iwd.networks(run))
    for d in (0.2, 1.0):
        done = iwd.within("pgd-10", d)(model, x, y, None)
        assert InternalWassersteinBall(d).contains(x[done.success], done.x_adv[done.success]).all()


def test_defenses_go_on_from_one_network(run, monkeypatch):
    monkeypatch.setattr(iwd, "BOUNDED", {"fgsm": iwd.BOUNDED["fgsm"]})
    monkeypatch.setattr(iwd, "FREE", {})
    iwd.defend(run)
    cases = {r.case: r for r in results.read("iwd-defenses", run.out)}
    rows = ("standard", "free", "fast", "pgd", "trades", "mart", "iwdd")
    assert set(cases) == {f"{row}-{judge}" for row in rows for judge in ("clean", "fgsm")}
    assert cases["iwdd-clean"].details["start"] == "standard"
    assert isinstance(iwd.standard(run).defense, Standard)
