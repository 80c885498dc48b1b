"""Every public function and class has an example, and each example prints what it says."""

import doctest
import importlib
import inspect
import re
from pathlib import Path

import docstrings
import matplotlib
import pytest

import wotlab

API = Path(__file__).resolve().parents[1] / "book" / "api"
THINGS = {name: thing for name, thing in docstrings.homes().items() if docstrings.described(thing)}
RUNNER = doctest.DocTestRunner(verbose=False)


@pytest.fixture(autouse=True, scope="module")
def no_window():
    """Figures are drawn in memory, and closed."""
    with matplotlib.rc_context():
        matplotlib.use("Agg")
        yield


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", THINGS)
def test_example_prints_what_it_says(name):
    thing = inspect.unwrap(THINGS[name])
    example = doctest.DocTestParser().get_doctest(thing.__doc__, {}, name, thing.__module__, 0)
    assert re.search(r"^ *Examples\n *-{8}\n", thing.__doc__, re.MULTILINE)
    assert any(step.want for step in example.examples)
    said: list[str] = []
    failed, _ = RUNNER.run(example, out=said.append)
    assert not failed, "".join(said)


def test_methods_have_none_that_nobody_runs():
    """Examples stand with functions and classes, where the test above finds them."""
    for thing in THINGS.values():
        parts = vars(thing).values() if inspect.isclass(thing) else ()
        methods = (part for part in parts if inspect.isroutine(part) or isinstance(part, property))
        assert not any(">>>" in (inspect.getdoc(method) or "") for method in methods)


def test_every_public_name_has_its_place_in_the_reference():
    """On the page of its module, once; the top's names in a table there that links to them."""
    listed = []
    for page in API.glob("*.md"):
        for block in page.read_text().split(".. api:: ")[1:]:
            module, *lines = block.split("```")[0].splitlines()
            names = " ".join(line.rpartition(":")[2] for line in lines).split()
            listed += [f"{module}.{name}" for name in names if name]
    top = {f"wotlab.{name}" for name in wotlab.__all__}
    assert len(listed) == len(set(listed)) and set(listed) == {*docstrings.homes(), *top}


def test_every_module_has_a_page_that_the_contents_list():
    pages = {page.stem for page in API.glob("*.md")}
    modules = {path.rpartition(".")[2] for path in docstrings.modules() if path.count(".") == 1}
    assert pages == {*modules, "wotlab"}
    contents = (API.parents[1] / "_toc.yml").read_text()
    assert set(re.findall(r"file: book/api/(\w+)", contents)) == pages


@pytest.mark.parametrize(
    ("text", "seen_from", "target"),
    [
        ("exact", "wotlab.ot.sinkhorn", "wotlab.ot.exact"),
        ("exact", "wotlab.iwd.tiled", "wotlab.iwd.exact"),
        ("pgd", "wotlab.training.PGDAT", "wotlab.attacks.pgd"),
        ("wotlab.GroundCost", "wotlab.iwd", "wotlab.ot.GroundCost"),
        ("wotlab.certify", "wotlab.balls", "wotlab.balls.certify"),
        ("GroundCost(window=None)", "wotlab.projections", "wotlab.ot.GroundCost"),
        ("OTResult.plan", "wotlab.plans.TransportPlan", "wotlab.ot.OTResult"),
        ("attacks.radius", "wotlab.evaluate.certified_radius", "wotlab.attacks.radius"),
        ("offsets", "wotlab.ot.GroundCost", "wotlab.ot.GroundCost.offsets"),
        ("contains", "wotlab.balls.WassersteinBall", "wotlab.balls.Ball.contains"),
        ("card(name)", "wotlab.models.load", "wotlab.models.card"),
        ("share", "wotlab.transformations.translate", None),  # a parameter of its own
        ("steps", "wotlab.attacks.pgd", None),
        ("exact=False", "wotlab.balls.certify", None),
        ("Stepper", "wotlab.attacks.climb", None),  # is not public
    ],
)
def test_names_in_docstrings_link_to_what_they_name(text, seen_from, target):
    scope, own = docstrings.scope_of(seen_from)
    assert docstrings.resolve(text, scope, own) == target


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("|i - j|_2 <= 1", r":math:`\lVert i - j \rVert_2` ≤ 1"),
        ("(f_i + g_j)", "(:math:`f_{i}` + :math:`g_{j}`)"),
        ("C_ij, pixels^p", r":math:`C_{ij}`, :math:`\mathrm{pixels}^p`"),
        ("KL(p(x) | p(z)) and KL(a | b)", r"KL(p(x) \| p(z)) and KL(a \| b)"),
        ("**x_y** of x_adv and mass_error", "**x_y** of x_adv and mass_error"),
        ("lam * losses_k", "lam * losses_k"),
    ],
)
def test_short_terms_become_mathematics(plain, shown):
    assert docstrings.rewrite(plain, "wotlab.ot.exact") == shown


def test_mathematics_and_examples_of_a_docstring_stay_as_they_are():
    lines = [
        "|x| <= `eps` and `exact`.", "", ".. math:: |a|", "    <= b", "", "KL(p | q) of x_i.", "",
        ">>> a | b", "1 <= 2", "", ":math:`|z| <= 1`",
    ]  # fmt: skip
    docstrings.finish(None, "function", "wotlab.ot.sinkhorn", wotlab.ot.sinkhorn, None, lines)
    assert lines == [
        r":math:`\lvert x \rvert` ≤ `eps` and :py:obj:`exact <wotlab.ot.exact>`.", "",
        ".. math:: |a|", "    <= b", "", r"KL(p \| q) of :math:`x_{i}`.", "",
        ">>> a | b", "1 <= 2", "", ":math:`|z| <= 1`",
    ]  # fmt: skip


def test_signatures_say_types_shortly_and_defaults_as_one_would_write_them():
    def of(path):
        module, _, name = path.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        what = "class" if inspect.isclass(thing) else "function"
        return docstrings.sign(None, what, path, thing, None, "", None)

    text, result = of("wotlab.balls.WassersteinBall")
    assert "~torch.Tensor" not in text and "= GroundCost()" in text and result is None
    text, result = of("wotlab.attacks.pgd")
    assert "projection: " in text and "= constrained_sinkhorn" in text and "0x" not in text
    assert result.endswith("AttackResult")
    text, _ = of("wotlab.training.WassersteinAT")
    assert "partial(mirror_ascent, steps=6, step_size=4.0, early_stop=False)" in text
    assert all("0x" not in of(path)[0] for path in THINGS)
