"""Opens every page of the built site in a browser, as a reader with no network would."""

import functools
import json
import re
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from browsing import PHONE, SITE
from bs4 import BeautifulSoup

LOOK = (Path(__file__).parent / "site.js").read_text()
PAGES = sorted(str(p.relative_to(SITE)) for p in SITE.rglob("*.html") if "_static" not in p.parts)

pytestmark = pytest.mark.skipif(not PAGES, reason="no built site: run `make book` first")
if not PAGES:
    PAGES = ["none"]


def ask(browser, question: str):
    """The answer of tests/site.js."""
    code = "const done = arguments[arguments.length - 1];"
    code += f"(async () => {question})().then(done, (e) => done('failed: ' + e))"
    answer = browser.execute_async_script(code)
    assert not isinstance(answer, str), answer
    return answer


def requests(browser, address: str) -> list[str]:
    """What went wrong on the network since the last call, and what went outside."""
    wrong = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        method, values = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            url = values["request"]["url"]
            if not url.startswith((address, "data:", "blob:")):
                wrong.append(f"asks another host: {url}")
        elif method == "Network.responseReceived" and values["response"]["status"] >= 400:
            wrong.append(f"{values['response']['status']}: {values['response']['url']}")
        elif method == "Network.loadingFailed" and not values.get("canceled"):
            wrong.append(f"failed: {values['errorText']}")
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_page_reads_well_on_a_phone_and_in_the_dark(browser, address, page):
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    browser.get(address + page)
    browser.execute_script(LOOK + "window.site = site;")
    ask(browser, "site.settle()")
    seen = {
        "mathematics": ask(browser, "site.mathematics()"),
        f"overflow at {PHONE} pixels": ask(browser, "site.overflow()"),
        "images without alt text or not shown": ask(browser, "site.images()"),
        "too faint in the light": ask(browser, "site.faint('light')"),
        "too faint in the dark": ask(browser, "site.faint('dark')"),
        "requests": requests(browser, address),
        "console": [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"],
    }
    assert not {what: wrong for what, wrong in seen.items() if wrong}


@functools.cache
def parsed(path: Path) -> tuple[list[str], set[str]]:
    """The links of a page, and the anchors that it offers."""
    page = BeautifulSoup(path.read_text(), "html.parser")
    links = [tag["href"] for tag in page.find_all("a", href=True)]
    return links, {tag["id"] for tag in page.find_all(id=True)}


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_lead_somewhere(page):
    broken = []
    for link in parsed(SITE / page)[0]:
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        name, anchor = urldefrag(unquote(link))
        target = ((SITE / page).parent / name.partition("?")[0]).resolve() if name else SITE / page
        page_has = parsed(target)[1] if target.suffix == ".html" and target.is_file() else {anchor}
        if not target.is_file() or (anchor and anchor not in page_has):
            broken.append(link)
    assert not broken


def test_every_chapter_is_on_the_site():
    notebooks = (SITE.parents[1] / "book").glob("*.ipynb")
    assert {f"book/{n.stem}.html" for n in notebooks} <= set(PAGES)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("book/0")])
def test_no_line_ends_before_a_per_cent_sign(page):
    article = BeautifulSoup((SITE / page).read_text(), "html.parser").find("article")
    prose = [tag.get_text() for tag in article.select("p, li, dd") if not tag.find_parent("svg")]
    assert not [text for text in prose if re.search(r"\d %", text)]
    assert any("\N{NO-BREAK SPACE}%" in text for text in prose)
