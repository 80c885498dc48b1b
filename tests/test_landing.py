"""The attack of the landing page, in a browser: what it computes, and how it is used."""

import functools
import json
from pathlib import Path

import landing
import pytest
import torch
from browsing import SITE
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import wotlab

PAGE = SITE / "book" / "index.html"
SCRIPTS = Path(landing.__file__).parents[1] / "_static" / "landing"
NETWORKS = list(landing.NETWORKS)
needs_site = pytest.mark.skipif(not PAGE.exists(), reason="no built site: run `make book` first")
pytestmark = pytest.mark.usefixtures("one_thread")


# What it computes


@pytest.fixture(scope="module")
def arithmetic(browser, tmp_path_factory):
    """Runs JavaScript beside attack.js, the networks and the digits, from files alone."""
    folder = tmp_path_factory.mktemp("landing")
    landing.write(folder)
    (folder / "attack.js").write_text((SCRIPTS / "attack.js").read_text())
    names = ("attack", "data", *NETWORKS)
    page = folder / "page.html"
    page.write_text("".join(f'<script src="{name}.js"></script>' for name in names))
    browser.get(page.as_uri())
    browser.execute_script(
        "window.network = (name) => MovingMass.network(MovingMass.weights[name]);"
        "window.pictures = MovingMass.digits.map((d) => MovingMass.picture(d.pixels));"
    )
    return browser.execute_script


@functools.cache
def network(name: str) -> torch.nn.Module:
    return wotlab.models.load(name).double()


@functools.cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = wotlab.data.load("mnist-5k", "test").tensors(list(landing.DIGITS))
    return x.double(), y


def test_the_digits_are_one_of_each_class_and_every_network_reads_them(arithmetic):
    x, y = images()
    assert y.tolist() == list(range(10))
    shown = torch.tensor(arithmetic("return pictures.map((p) => [...p])")).double()
    assert torch.equal(shown.reshape(x.shape), x)
    for name in NETWORKS:
        assert torch.equal(network(name)(x).argmax(1), y)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_arrive_as_they_are(arithmetic, name):
    code = "return network(arguments[0]).map((l) => [[...l.weight], [...l.bias]])"
    found = [torch.tensor(part).double() for layer in arithmetic(code, name) for part in layer]
    for ours, theirs in zip(network(name).parameters(), found, strict=True):
        assert torch.equal(ours.flatten(), theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_loss_and_gradient_are_those_of_the_package(arithmetic, name):
    x, y = images()
    code = """const layers = network(arguments[0]);
    return pictures.map((p, k) => {
      const { loss, gradient } = MovingMass.objective(layers, p, MovingMass.digits[k].label);
      return [loss, ...gradient];
    })"""
    found = torch.tensor(arithmetic(code, name)).double()
    x = x.requires_grad_()
    logits = network(name)(x)
    own = logits.gather(1, y[:, None])
    loss = logits.scatter(1, y[:, None], -torch.inf).logsumexp(1, keepdim=True) - own
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    x.requires_grad_(False)
    torch.testing.assert_close(found[:, :1], loss.detach())
    torch.testing.assert_close(found[:, 1:], gradient.flatten(1))


OPTIONS = {
    "to the end": {},
    "early stop": {"early_stop": True},
    "momentum": {"momentum": 0.6, "step_size": 0.5, "steps": 25},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("eps", [0.0, 0.04, 0.15, 0.35, 1.5])
@pytest.mark.parametrize("name", NETWORKS)
def test_attack_is_that_of_the_package(arithmetic, name, eps, options):
    """Image, cost, probabilities and verdict; and the moves that are drawn lead to the image."""
    x, y = images()
    options = {"steps": 40, "early_stop": False} | options
    wanted = wotlab.attacks.mirror_ascent(
        network(name), x, y, wotlab.WassersteinBall(eps), **options
    )
    words = {"early_stop": "earlyStop", "step_size": "stepSize"}
    given = json.dumps({words.get(k, k): v for k, v in options.items()})
    code = f"""const layers = network(arguments[0]), eps = arguments[1];
    return pictures.map((p, k) => {{
      const best = MovingMass.attack(layers, p, MovingMass.digits[k].label, eps, {given});
      const moved = p.slice();
      for (const m of best.moves ? MovingMass.listed(best.moves) : []) {{
        moved[28 * m.from[0] + m.from[1]] -= m.mass * best.moves.mass;
        moved[28 * m.to[0] + m.to[1]] += m.mass * best.moves.mass;
      }}
      const told = [best.cost, Number(best.broken), best.reads];
      return [...told, ...best.probabilities, ...best.image, ...moved];
    }})"""
    found = torch.tensor(arithmetic(code, name, eps)).double()
    logits = network(name)(wanted.x_adv).detach()
    z = wanted.x_adv.flatten(1)
    assert found[:, 1].bool().tolist() == wanted.success.tolist()
    assert found[:, 2].tolist() == logits.argmax(1).tolist()
    torch.testing.assert_close(found[:, 0], wanted.cost, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 3:13], logits.softmax(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 13:797], z, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:, 797:], z, rtol=0, atol=1e-5)


# How it is used


class Widget:
    def __init__(self, browser):
        self.browser = browser

    def __getitem__(self, name):
        return self.browser.find_element(By.CSS_SELECTOR, f".break [data-part={name}]")

    def choose(self, group: str, value):
        css = f".break [name=break-{group}][value='{value}']"
        self.browser.execute_script("document.querySelector(arguments[0]).click()", css)

    def settle(self) -> str:
        """The verdict, once the attack is over and its steps have been shown."""

        def over(driver):
            busy = driver.find_element(By.CSS_SELECTOR, ".break").get_attribute("aria-busy")
            return not busy and self["step"].get_property("value") == "40"

        WebDriverWait(self.browser, 30, 0.05).until(over)
        return self["verdict"].text

    def ink(self, name: str) -> float:
        """The sum of what covers a canvas."""
        code = """const c = arguments[0], pen = c.getContext("2d");
        const { data } = pen.getImageData(0, 0, c.width, c.height);
        return data.reduce((t, v, i) => t + (i % 4 === 3 ? v / 255 : 0), 0) / c.width ** 2 * 784"""
        return self.browser.execute_script(code, self[name])


@pytest.fixture
def widget(browser, address):
    browser.get(address + "book/index.html")
    found = Widget(browser)
    found.settle()
    return found


@needs_site
def test_a_visitor_sees_a_broken_digit_and_the_other_network_hold(widget):
    assert "takes this 5 for a 3" in widget["verdict"].text
    assert widget["verdict"].get_attribute("aria-live") == "polite"
    assert "0.15 of 0.15 spent" in widget["spent"].text
    bars = widget.browser.find_elements(By.CSS_SELECTOR, ".break-bars li")
    shares = [int(bar.text.split()[1]) for bar in bars]
    assert len(shares) == 10 and sum(shares) in range(97, 104) and shares.index(max(shares)) == 3
    assert "wrong" in bars[3].get_attribute("class")
    widget.choose("network", 1)
    assert "still reads 5" in widget.settle()
    assert widget.browser.find_element(By.ID, "fig-break").is_displayed() is False


@needs_site
def test_budget_and_steps_go_by_keyboard(widget):
    widget["eps"].send_keys(Keys.HOME)
    assert "still reads 5" in widget.settle() and "No ink" in widget["spent"].text
    before = widget.ink("image")
    widget["eps"].send_keys(Keys.END)
    assert "Broken" in widget.settle() and "of 0.60 spent" in widget["spent"].text
    assert abs(widget.ink("image") - before) < 1  # of about 100: none is made or lost
    widget["step"].send_keys(Keys.HOME)
    assert widget["at"].text == "0 of 40" and "No ink" in widget["spent"].text
    widget["step"].send_keys(Keys.ARROW_RIGHT)
    assert widget["at"].text == "1 of 40"
    first = widget.browser.find_element(By.CSS_SELECTOR, "[name=break-digit]:checked")
    first.send_keys(Keys.ARROW_LEFT)
    assert " 4 " in widget.settle()


@needs_site
def test_a_digit_can_be_drawn_with_a_pointer(widget):
    widget.choose("digit", "draw")
    assert not widget["go"].is_enabled()
    canvas, side = widget["moves"], widget["moves"].size["width"]
    draw = ActionChains(widget.browser, duration=30)
    draw.move_to_element_with_offset(canvas, 0, int(-0.25 * side)).click_and_hold()
    draw.move_to_element_with_offset(canvas, 0, int(0.25 * side)).release().perform()
    WebDriverWait(widget.browser, 10).until(lambda _: "reads 1" in widget["verdict"].text)
    widget["go"].click()
    assert " 1 " in widget.settle() and "spent" in widget["spent"].text
    widget["clear"].click()
    WebDriverWait(widget.browser, 10).until(lambda _: "Draw a digit" in widget["verdict"].text)


@needs_site
def test_a_digit_can_be_drawn_with_the_keyboard(widget):
    widget.choose("digit", "draw")
    widget["moves"].send_keys(*[Keys.ARROW_UP] * 6, " ", *[Keys.ARROW_DOWN] * 12, " ")
    WebDriverWait(widget.browser, 10).until(lambda _: "reads 1" in widget["verdict"].text)
    before = widget.ink("moves")
    widget["moves"].send_keys(*[Keys.ARROW_RIGHT] * 4)  # the pen is up
    assert abs(widget.ink("moves") - before) < 3
    assert widget["moves"].get_attribute("aria-label").startswith("Draw here")


@needs_site
def test_it_is_still_where_motion_is_not_wanted(browser, address):
    def wanted(motion: str):
        feature = {"name": "prefers-reduced-motion", "value": motion}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    wanted("reduce")
    try:
        browser.get(address + "book/index.html")
        widget = Widget(browser)
        widget.settle()
        assert not widget["play"].is_displayed()
        steps = """const done = arguments[arguments.length - 1], seen = new Set();
        const watch = () => {
          seen.add(document.querySelector(".break [data-part=at]").textContent);
          if (document.querySelector(".break").ariaBusy) requestAnimationFrame(watch);
          else done([...seen]);
        };
        document.querySelector("[name=break-digit][value='0']").click();
        watch();"""
        assert sorted(browser.execute_async_script(steps)) == ["0 of 40", "40 of 40"]
    finally:
        wanted("no-preference")


@needs_site
def test_it_runs_from_a_file_and_fast(browser):
    browser.get(PAGE.as_uri())
    assert "Broken" in Widget(browser).settle()
    code = """const layers = MovingMass.network(MovingMass.weights["mnist-standard"]);
    const d = MovingMass.digits[5], x = MovingMass.picture(d.pixels), times = [];
    for (let k = 0; k < 3; k++) {
      const start = performance.now();
      MovingMass.attack(layers, x, d.label, 0.15);
      times.push(performance.now() - start);
    }
    return Math.min(...times);"""
    assert browser.execute_script(code) < 1000


@needs_site
def test_without_scripts_a_picture_stands_there(browser, address):
    off = "Emulation.setScriptExecutionDisabled"
    browser.execute_cdp_cmd(off, {"value": True})
    try:
        browser.get(address + "book/index.html")
        assert browser.find_element(By.CSS_SELECTOR, "#fig-break img").is_displayed()
        assert not browser.find_elements(By.CSS_SELECTOR, ".break")
    finally:
        browser.execute_cdp_cmd(off, {"value": False})


def test_only_the_first_page_loads_it():
    """Other pages do without; nothing that is made at build time is committed."""
    assert {path.name for path in SCRIPTS.iterdir()} == {"attack.js", "page.js"}
    if PAGE.exists():
        loads = {p.name for p in PAGE.parent.glob("*.html") if "landing/attack.js" in p.read_text()}
        assert loads == {PAGE.name}
