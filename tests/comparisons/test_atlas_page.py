"""The atlas's page in a real browser: search, filters, sorting, anchors, the keyboard, a telephone, and axe."""

import subprocess
import tarfile
from shutil import which

import pytest
from playwright import sync_api as playwright

from tests.support.problems import COMPARISONS

PAGE = (COMPARISONS / "atlas" / "atlas.html").as_uri()
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
AXE = "axe-core@4.10.3"
pytestmark = [
    pytest.mark.skipif(not which("chromium"), reason="needs Debian's chromium"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=which("chromium"), args=FLAGS.split())
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    asked = []
    context.on("request", lambda request: asked.append(request.url))
    opened = context.new_page()
    opened.goto(PAGE)
    yield opened
    assert all(url.startswith("file:") for url in asked)  # nothing comes from a network
    context.close()


def rows(page):
    return page.eval_on_selector_all("#table tbody tr:not([hidden])", "rows => rows.map(row => row.dataset.name)")


def count(page):
    return int(page.inner_text("#count").split()[0])


def test_search_finds_names_expressions_and_what_is_said(page):
    everything = count(page)
    page.fill("#search", "scatter")
    assert 0 < count(page) < everything
    assert len(rows(page)) == count(page)
    page.fill("#search", "jax.scipy.special.i1(")
    assert rows(page) == ["special.i1"]
    assert page.is_visible("[id='special.i1']")
    assert page.is_hidden("[id='special.i0']")
    page.fill("#search", "-1.3e30")  # with a keyboard's minus
    assert "linear_algebra.matrix_exp" in rows(page)
    page.fill("#search", "no-such-function")
    assert rows(page) == []
    assert "search for less" in page.inner_text("#count")
    page.fill("#search", "")
    assert count(page) == everything


def test_kinds_and_families_are_filters(page):
    everything = count(page)
    buttons = page.query_selector_all("[data-kind]")
    for button in buttons:
        if button.get_attribute("data-kind") != "bug":
            button.click()
    assert 0 < count(page) < everything
    assert all(
        "bug" in kinds
        for kinds in page.eval_on_selector_all(
            "#table tbody tr:not([hidden])", "rows => rows.map(row => row.dataset.kinds)"
        )
    )
    page.select_option("#family", "special")
    assert rows(page)
    assert all(name.startswith("special.") for name in rows(page))


def test_columns_sort_both_ways(page):
    names = rows(page)
    page.click("th button[data-by='name']")
    assert rows(page) == sorted(names)
    page.click("th button[data-by='name']")
    assert rows(page) == sorted(names, reverse=True)
    page.click("th button[data-by='differences']")
    numbers = page.eval_on_selector_all("#table tbody tr", "rows => rows.map(row => +row.dataset.differences)")
    assert numbers == sorted(numbers, reverse=True)
    assert page.get_attribute("th:has(button[data-by='differences'])", "aria-sort") == "descending"
    assert page.get_attribute("th:has(button[data-by='name'])", "aria-sort") == "none"


def test_each_function_has_an_anchor_of_its_own(page):
    for name in ("special.i1", "elementwise.abs"):
        page.goto(f"{PAGE}#{name}")
        page.wait_for_timeout(100)
        top = page.evaluate("name => document.getElementById(name).getBoundingClientRect().top", name)
        assert -10 < top < 400
    page.fill("#search", "gelu")
    page.evaluate("location.hash = 'special.i0'")  # which the search hides
    page.wait_for_timeout(100)
    assert page.is_visible("[id='special.i0']")


def test_the_keyboard_is_enough(page):
    page.keyboard.press("/")
    page.keyboard.type("functional.softplus")
    assert rows(page) == ["activations.softplus"]
    page.keyboard.press("Escape")
    assert len(rows(page)) > 100
    page.focus(".map a")
    first = page.evaluate("document.activeElement.hash")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.hash") != first
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == first
    page.focus("th button[data-by='name']")
    page.keyboard.press("Enter")
    assert page.get_attribute("th:has(button[data-by='name'])", "aria-sort") == "ascending"
    page.focus(f"[id='{first[1:]}'] summary")
    page.keyboard.press("Enter")
    assert page.is_visible(f"[id='{first[1:]}'] details[open] pre, [id='{first[1:]}'] details[open] table")


def test_it_fits_a_telephone(browser):
    context = browser.new_context(viewport={"width": 375, "height": 800}, is_mobile=True, has_touch=True)
    opened = context.new_page()
    opened.goto(PAGE)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 375
    context.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """Axe's program, from npm."""
    if not which("npm"):  # as without chromium: .ci/run installs both, and a reader's machine need not have them
        pytest.skip("needs npm, for axe")
    folder = tmp_path_factory.mktemp("axe")
    packed = subprocess.run(["npm", "pack", "--silent", AXE], cwd=folder, capture_output=True, text=True)
    if packed.returncode:  # a machine without a network says nothing of the page
        pytest.skip(f"npm cannot fetch {AXE}: {packed.stderr.strip()[-200:]}")
    with tarfile.open(folder / packed.stdout.strip()) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("open_all", [False, True], ids=["closed", "opened"])
def test_axe_finds_nothing_serious(page, axe, open_all):
    if open_all:
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(axe)
    violations = page.evaluate("axe.run({resultTypes: ['violations']}).then(found => found.violations)")
    serious = [v for v in violations if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"][:200], v["nodes"][0]["failureSummary"]) for v in serious] == []
