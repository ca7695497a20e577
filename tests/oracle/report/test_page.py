"""The page: what it holds, that it holds nothing else, and what a browser makes of it."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from oracle.report.made import BEFORE, EXCERPT, OVER, case, hostile, results, wrong
from support import REQUIRED, need

from refpeft.oracle.claims import Finding, Known
from refpeft.oracle.report.page import CHAINS, link, page

FINDING = Finding(
    "mutant", "M01 all keys first", ["peft-0.21.2/prefix_tuning/prefix_encode/odd-layers (float32)"], 1,
    first="prefix.layers.0.key", mutants=["M01"], clauses=["PX-4"], bits=29.9,
)  # fmt: skip
FAILING = results(
    case(), case(profile="float64"), wrong(), case("SKIPPED", "common/mask/full", message="not yet", level="components"),
    case("CRASHED", "common/mask/left-padding", message="status 3", level="components"),
    diagnosis=[FINDING], blind_spots=["M102"], not_asked=["peft-0.21.2/prefix_tuning/training/clipping"],
    profiles=["float32", "float64"],
)  # fmt: skip


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside of styles and scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.text += "" if self._inside else f" {data}"

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def plain(html: str) -> str:
    return " ".join(Elements(html).text.split())


def test_it_says_what_a_run_amounts_to() -> None:
    said = plain(page(FAILING))
    for text in (
        "my-port 0.3.1 NONCONFORMING some answers differ from HF peft: 2 of 5 questions conform (4 cases in 2 profiles);",
        "components 0 /2 not asked", "model 1 /1 1 /1", "M01",
        "first difference prefix.layers.0.key PX-4 Which block is which",
        "error 1.3 normwise, budget 5e-07 = 8 · max(floor 7e-08, u 6e-08); the floor decides",
        "where worst at row 0, head 1: -2.5, HF 0.5", "before it, 1 tensor agrees to 29.9 bits or better",
        "prefix.layers.0.key row 0, head 1 · virtual (2) × head_dim (3)", "first 1 column is the prefix",
        "CRASHED status 3", "refpeft explain PX-4", "1 known mistake that no case decides in float32 and float64: M102",
        "1 case beyond what the port says it can do: prefix_tuning/training 1 clipping",
        "To repeat it refpeft check -- './my port'",
    ):  # fmt: skip
        assert text in said, text
    assert "partial" not in said


def test_a_partial_run_says_so() -> None:
    said = plain(page(results(case(), summary={"partial": True, "partial_because": "interrupted"})))
    assert "CONFORMS partial every answer agrees" in said
    assert "Not seen partial interrupted Blind spots None known among what was asked." in said


def test_an_expected_failure_says_why() -> None:
    known = msgspec.structs.replace(
        wrong(), expected=Known("layers are counted from 1", "https://example.org/7")
    )
    html = page(results(known))
    assert "expected failure layers are counted from 1 https://example.org/7" in plain(html)
    assert "https://example.org/7" in {a.get("href") for a in Elements(html).of("a")}


def test_chains_are_shown_of_as_many_cases_as_a_page_bears() -> None:
    bare = [msgspec.structs.replace(wrong(f"a/b/{i}"), excerpts=[]) for i in range(CHAINS + 7)]
    html = page(results(*bare, wrong()))
    assert len(Elements(html).of("details")) == CHAINS + 8
    assert html.count('<table class="chain">') == CHAINS + 1
    chain = plain(page(results(wrong())))
    assert "prefix.flat 0.002 × budget 29.9 bits prefix.layers.0.key 3e6 × budget -0.4 bits" in chain


@pytest.mark.parametrize("made", [FAILING, hostile(), results()])
def test_it_asks_nothing_of_anybody(made: Any) -> None:
    """Scripts and styles have their hashes in the policy; addresses are within the page, or data."""
    elements = Elements(page(made))
    (policy,) = [
        m["content"] for m in elements.of("meta") if m.get("http-equiv") == "Content-Security-Policy"
    ]
    hashes = re.findall(r"<(style|script)>(.*?)</\1>", page(made), re.DOTALL)
    assert [name for name, _ in hashes] == ["style", "script"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for _, text in hashes]
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )
    for tag, attributes in elements.found:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), (tag, value)
    assert {tag for tag, _ in elements.found} & {"iframe", "object", "embed", "base"} == set()


def test_hostile_words_are_words() -> None:
    html = page(hostile())
    elements = Elements(html)
    assert len(elements.of("script")) == len(Elements(page(FAILING)).of("script")) == 3
    assert "<img src=x onerror=alert(2)>" in elements.text
    assert {image.get("src", "")[:5] for image in elements.of("img")} == {"data:"}  # type: ignore[index]
    assert "49" not in elements.text, "no template within the template"


def test_what_is_wrong_in_a_document_of_somebody_is_no_crash() -> None:
    torn = msgspec.structs.replace(EXCERPT, given=[[1.0]], worst=[5, 5])
    strange = msgspec.structs.replace(
        wrong(),
        excerpts=[torn, *(msgspec.structs.replace(EXCERPT, start=place) for place in ([], [1, 2, 3]))],
        profile="?",
    )
    odd = msgspec.structs.replace(
        case("NONCONFORMING", first=OVER, differences=[BEFORE]), case="no-slash", level="?"
    )
    assert "no-slash" in plain(page(results(strange, odd)))


def test_only_addresses_of_the_web_are_linked() -> None:
    assert link("https://example.org/a?b=1#c") == "https://example.org/a?b=1#c"
    for other in (
        "javascript:alert(1)",
        "data:text/html,x",
        "https://a b",
        "//x",
        "",
        "\x01https://x",
        "https://x\n",
    ):
        assert link(other) == ""


# ---------------------------------------------------------------- in a browser

FLAGS = (
    *(
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ),
    *("--disable-sync", "--no-first-run", "--window-size=1400,1000"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium, driver = need("chromium"), need("chromedriver")
    selenium = importlib.import_module if "chromium" in REQUIRED else need
    webdriver: Any = selenium("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, list[str]]]:
    """A server for the pages, its directory, and what was asked of it."""
    directory, asked = tmp_path_factory.mktemp("pages"), list[str]()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", directory, asked
    server.shutdown()
    server.server_close()


@pytest.fixture
def opened(browser: Any, served: Any) -> Any:
    """Open a page of some results; afterwards nothing was logged, and nothing but the page was asked for."""
    address, directory, asked = served

    def open_(made: Any, anchor: str = "") -> Any:
        name = f"{len(list(directory.iterdir()))}.html"  # another each time: none is in a cache
        (directory / name).write_text(page(made), encoding="utf-8")
        browser.get("about:blank")
        asked.clear()
        browser.get_log("browser")
        browser.get_log("performance")
        browser.get(f"{address}/{name}{anchor}")
        return browser

    yield open_
    assert browser.get_log("browser") == []
    (path,) = asked
    sent = [m for m in browser.get_log("performance") if '"Network.requestWillBeSent"' in m["message"]]
    addresses = {re.search(r'"url":"([^"]{0,40})', m["message"])[1] for m in sent}  # type: ignore[index]
    assert {a for a in addresses if not a.startswith(("data:", "about:"))} == {address + path}


def visible(browser: Any) -> list[str]:
    script = "return [...document.querySelectorAll('[data-kind]')].filter(e => !e.hidden).map(e => e.id)"
    return list(browser.execute_script(script))


def press(browser: Any, keys: str) -> None:
    need("selenium.webdriver").ActionChains(browser).send_keys(keys).perform()


def focused(browser: Any) -> Any:
    return browser.execute_script(
        "return document.activeElement.closest('.case')?.id ?? document.activeElement.id"
    )


def test_filters(opened: Any) -> None:
    browser = opened(FAILING)
    assert len(visible(browser)) == 5
    browser.find_element("id", "search").send_keys("layers.0.KEY odd")
    assert visible(browser) == ["c2"]
    assert browser.find_element("id", "count").text == "1 of 5 shown"
    hidden = "return [...document.querySelectorAll('.suite')].filter(s => s.hidden).length"
    assert browser.execute_script(hidden) == 2
    press(browser, "\ue00c")  # Escape
    assert len(visible(browser)) == 5
    for value, left in (("failing", ["c0", "c1", "c3"]), ("conforming", ["c3"]), ("skipped", [])):
        browser.find_element("css selector", f"input[value={value}] + span").click()
        assert sorted(visible(browser)) == left
    press(browser, "\ue00c")
    browser.find_element("css selector", "input[value=float32] + span").click()
    assert visible(browser) == ["c1"]


def test_keys(opened: Any) -> None:
    browser = opened(FAILING)
    press(browser, "f")
    assert visible(browser) == ["c2", "c4"]
    press(browser, "j")
    assert focused(browser) == "c2"
    press(browser, "j")
    assert focused(browser) == "c4"
    press(browser, "j")
    assert focused(browser) == "c4", "there is no other"
    press(browser, "k")
    browser.switch_to.active_element.send_keys("\ue007")  # Enter
    assert browser.find_element("id", "c2").get_attribute("open") == "true"
    press(browser, "/")
    assert focused(browser) == "search"
    browser.switch_to.active_element.send_keys("jf/")
    assert browser.find_element("id", "search").get_attribute("value") == "jf/"


def test_an_anchor_opens_its_case(opened: Any) -> None:
    browser = opened(FAILING, "#c2")
    assert browser.find_element("id", "c2").get_attribute("open") == "true"
    heat = browser.find_elements("css selector", "#c2 .heat")
    assert len(heat) == 6
    need("selenium.webdriver").ActionChains(browser).move_to_element_with_offset(heat[0], 0, 0).perform()
    tip = browser.find_element("id", "tip")
    assert tip.text.splitlines()[0] == "row 0, column 1"
    assert tip.text.split()[4:6] == ["expected", "1"]


def test_hostile_words_do_nothing(opened: Any) -> None:
    browser = opened(hostile())
    assert browser.execute_script("return document.querySelectorAll('script').length") == 3
    assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
    assert "onerror=alert(2)" in browser.find_element("css selector", "h1").text


def test_a_script_that_is_not_refpeft_s_is_blocked(browser: Any, served: Any) -> None:
    """The policy holds by itself, if escaping did not."""
    address, directory, _ = served
    html = page(FAILING).replace(
        "</body>", "<script>document.title = 'taken'</script><img src='/x.png'></body>"
    )
    (directory / "b.html").write_text(html, encoding="utf-8")
    browser.get(f"{address}/b.html")
    assert browser.title == "my-port: NONCONFORMING · refpeft"
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert len([message for message in said if "Content Security Policy" in message]) == 2


def test_it_is_whole_without_javascript(opened: Any, browser: Any) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(FAILING)
        texts = [
            e.text for e in browser.find_elements("css selector", "h2, .case > summary, ul.rest li, .said")
        ]
        assert not browser.find_element("id", "filters").is_displayed()
        for text in (
            "Levels",
            "What it looks like",
            "Cases × stages",
            "Cases",
            "Not seen",
            "To repeat it",
            "full float32",
        ):
            assert text in texts
        case_ = browser.find_element("css selector", "#c2 > summary")
        case_.click()
        assert browser.find_element("css selector", "#c2 .heat").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize(
    ("width", "scheme"), [(390, "light"), (390, "dark"), (1400, "light"), (1400, "dark")]
)
def test_nothing_is_wider_than_the_window(opened: Any, browser: Any, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        for made in (FAILING, hostile()):
            opened(made, "#c2")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", colour))) < 384) == (scheme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
