"""`python -m wotlab.evaluate`: threats for any image, the table, the page, and what it refuses."""

import re

import pytest
import torch

from wotlab import data, evaluate, models
from wotlab.evaluate import Field, Matrix
from wotlab.evaluate.__main__ import main
from wotlab.evaluate._report import page, text

NETWORK = "from wotlab import models\nmodel = models.load('digits-standard')\n"


def test_usual_threats_reach_the_largest_change_and_fit_small_images():
    threats = evaluate.usual_threats(torch.rand(2, 1, 8, 8))
    assert list(threats) == ["linf", "l2", "wasserstein", "shift", "rotation", "blur"]
    assert threats["l2"].ball.eps == 8 and threats["linf"].ball.eps == 1
    x, y = data.load("digits").tensors(slice(5))
    model = models.load("digits-standard").double()
    for name in ("shift", "rotation", "blur"):  # each size can be made of 8x8 images
        assert threats[name].find(model, x.double(), y).shape == (5,)
    with pytest.raises(ValueError, match="x must be at least 8 pixels"):
        evaluate.usual_threats(torch.rand(2, 1, 7, 9))


def test_the_command_measures_once_and_goes_on(tmp_path, capsys):
    (tmp_path / "net.py").write_text(NETWORK)
    out = tmp_path / "out"
    call = [str(tmp_path / "net.py"), "--data", "digits", "--images", "12", "--out", str(out)]
    assert main([*call, "--threats", "shift", "blur"]) == 0
    first = capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in (out / "net").iterdir()}
    assert {path.stem for path in kept} == {"shift", "blur"}
    assert main([*call, "--threats", "blur", "shift", "rotation"]) == 0
    again = capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())

    def row(said, name):
        return re.search(rf"^{name} .*", said, re.M).group().split()

    assert row(first, "blur") == row(again, "blur")
    x, y = data.load("digits", "test").tensors([k * 297 // 12 for k in range(12)])
    made = evaluate.matrix(
        {"net": models.load("digits-standard")},
        {"blur": evaluate.usual_threats(x)["blur"]}, (x, y),
    ).fields["net"]["blur"]  # fmt: skip
    assert f"{made.accuracy(0.0).value:.1%}" == row(first, "blur")[1]
    drawn = (out / "report.html").read_text()
    assert drawn.count("<svg") == 1 and str(tmp_path) not in drawn


def test_a_table_says_which_budget_leaves_which_share():
    radii = torch.tensor([0.0, 1.0, 2.0, 3.0, float("inf")], dtype=torch.double)
    field = Field(radii, forward=7, backward=1000, doubts=(evaluate.Doubt("claim", "<no>"),))
    made = Matrix({"net": {"moved": field}}, {"moved": "mm"})
    row = next(line for line in text(made).splitlines() if line.startswith("moved"))
    # 4 of 5 stand at 0; 75 % need 3.75, so at 1 three stand, at 2 two, at 3 one
    assert row.split() == ["moved", "80.0%", "1", "mm", "2", "mm", "3", "mm", "1,007", "0"]
    for share, eps in ((0.75, 1.0), (0.5, 2.0), (0.25, 3.0)):
        assert field.accuracy(eps).value <= share < field.accuracy(eps - 0.5).value
    assert "moved: claim: <no>" in text(made) and "&lt;no&gt;" in page(made, "of it")


@pytest.mark.parametrize(
    ("held", "options", "word"),
    [
        ("x = 1", [], "must hold `model`"),
        ("model = 3", [], "got int"),
        ("def load(): return None", [], "got NoneType"),
        (NETWORK, ["--threats", "wind"], "--threats knows linf"),
        (NETWORK, ["--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path, capsys, held, options, word):
    (tmp_path / "net.py").write_text(held)
    call = [str(tmp_path / "net.py"), "--data", "digits", "--images", "3"]
    assert main([*call, "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and word in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()
