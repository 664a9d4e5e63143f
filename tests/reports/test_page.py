"""The report in a real Chromium, from file://: it loads without errors, pages, zooms and prints; text stays text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echo_cli.cli.main import main
from echo_cli.files import append_jsonl, read_jsonl, write_atomic
from echo_cli.reports.page import MOST_BYTES

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

HOSTILE = (
    "<script>alert(1)</script></script><img src=x onerror=alert(2)>",
    "\x1b[31mred\x1b[0m \u202egnp.exe\u2066 --> <!-- &lt;b&gt; ]]> {{7*7}} \\u003c",
    "</div></article></body><svg onload=alert(3)>\r\n\0end",
)
LONG = "A" * 1_000_000


@pytest.fixture(scope="module")
def run(played: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with its report; the last kept rollout is hostile."""
    path = shutil.copytree(played, tmp_path_factory.mktemp("page") / "run")
    config = (path / "config.yaml").read_text()  # its report replays no tasks
    (path / "config.yaml").write_text(config.replace("heldout_rollouts: 2", "heldout_rollouts: 0"))
    *_, row = read_jsonl(path / "trajectories.jsonl")
    for segment, text in zip(row["segments"], [*HOSTILE, LONG], strict=False):
        segment["text"] = text
    row["segments"] = row["segments"][:3] + [dict(row["segments"][0], text=text) for text in (*HOSTILE, LONG)]
    row["turns"], row["task_id"] = row["turns"][:1], HOSTILE[0]
    append_jsonl(path / "trajectories.jsonl", [row])
    *before, last = read_jsonl(path / "metrics.jsonl")
    last["warnings"] = [{"signal": "collapse", "reason": "A" * 80}]
    write_atomic(path / "metrics.jsonl", b"".join(f"{json.dumps(row)}\n".encode() for row in (*before, last)))
    assert main(["report", str(path), "--checkpoint", "latest"]) == 0
    return path


@pytest.fixture(scope="module")
def address(run: Path) -> str:
    return (run / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


class Visit:
    """A page with a record of its errors and requests."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        self.page = self.context.new_page()
        self.faults: list[str] = []
        self.page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.requests: list[str] = []
        self.page.goto(address)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *_: object) -> None:
        assert self.faults == []
        assert all(url.startswith("file://") and "report.html" in url for url in self.requests), self.requests
        self.context.close()


def _steps(page: Any) -> list[str]:
    """Return the step labels of the first chart."""
    found: list[str] = page.locator(".chart").first.locator("text.step").all_text_contents()
    return found


def _shown(page: Any) -> str:
    """Return the id of the only visible episode."""
    (found,) = page.eval_on_selector_all(".episode", "all => all.filter(e => !e.hidden).map(e => e.id)")
    return str(found)


def test_it_loads_from_a_file_without_a_request_or_an_error(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        assert page.title() == "Report: run"
        assert page.locator(".chart").count() >= 9
        assert page.locator("#summary tbody tr").count() >= 4
        headings = page.eval_on_selector_all("h1, h2", "all => all.map(h => h.tagName)")
        assert headings.count("H1") == 1 and headings.count("H2") == 7


def test_episodes_are_paged_by_mouse_keyboard_list_and_address(browser: Any, address: str) -> None:
    with Visit(browser, f"{address}#episode-3") as page:
        assert _shown(page) == "episode-3"
        count = page.locator(".episode").count()
        assert page.locator("#position").inner_text() == f"Episode 3 of {count}"
        page.click("#next")
        assert _shown(page) == "episode-4" and page.url.endswith("#episode-4")
        page.click("#previous")
        page.locator("#viewer").focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert _shown(page) == f"episode-{count}"
        page.keyboard.press("ArrowRight")
        assert _shown(page) == "episode-1"
        page.select_option("#episode", "episode-5")
        assert _shown(page) == "episode-5"
        page.evaluate("location.hash = '#episode-2'")
        playwright.expect(page.locator("#episode-2")).to_be_visible()
        assert page.locator("#episode").input_value() == "episode-2"


def test_the_heat_map_has_four_ways_and_says_the_nats(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.eval_on_selector_all(
            ".episode:not([hidden]) .token",
            "all => all.filter(t => t.textContent.trim())"
            ".reduce((a, b) => Math.abs(b.after - b.before) > Math.abs(a.after - a.before) ? b : a).id = 'changed'",
        )
        token = page.locator("#changed")
        colour = "e => getComputedStyle(e).backgroundColor"
        colours = {}
        for mode in ("before", "after", "difference", "off"):
            page.check(f"input[name=heat][value={mode}]")
            colours[mode] = token.evaluate(colour)
        assert colours["off"] == "rgba(0, 0, 0, 0)"
        assert len(set(colours.values())) == 4, colours
        page.keyboard.press("ArrowLeft")  # on radio buttons, the key acts on them
        assert page.locator("input[value=difference]").is_checked() and _shown(page) == "episode-1"
        token.hover()
        said = page.locator("#readout").inner_text()
        assert re.search(r"\d\.\d\d nats before, \d+\.\d\d after \([−+]\d+\.\d\d\)", said), said
        assert said.split(": ", 1)[1].startswith(token.get_attribute("title"))
        page.locator("#viewer").focus()
        page.keyboard.press(".")
        assert page.locator("#readout").inner_text() != said


def test_a_chart_zooms_by_drag_wheel_and_keys_and_resets(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        whole = _steps(page)
        assert whole == ["0", "1", "2", "3", "4"]
        svg = page.locator(".chart > svg").first
        reset = page.locator(".chart button").first
        assert reset.is_hidden()
        svg.scroll_into_view_if_needed()
        box = svg.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 80, steps=3)
        page.mouse.up()
        assert _steps(page) == ["2", "3"] or _steps(page) == ["2", "3", "4"] or _steps(page) == ["3"]
        reset.click()
        assert _steps(page) == whole and reset.is_hidden()
        assert page.evaluate("document.activeElement.tagName.toLowerCase()") == "svg"
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
        page.mouse.wheel(0, -300)
        playwright.expect(reset).to_be_visible()
        page.keyboard.press("0")
        assert _steps(page) == whole
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        said = page.locator(".chart output").first.inner_text()
        assert re.fullmatch(
            r"step 1: held-out [\d.]+; the same pairs before training [\d.]+(; pairs w[\w ]+ [\d.]+)*", said
        ), said
        page.keyboard.press("+")
        assert _steps(page) == ["1", "2"]  # from 0.5 to 2.5
        page.keyboard.press("End")  # scrolls the last step into view
        assert _steps(page) == ["2", "3", "4"]
        page.keyboard.press("-")
        assert _steps(page) == whole


def test_the_wheel_scrolls_the_page_where_no_chart_has_the_focus(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        whole = _steps(page)
        page.locator(".chart > svg").first.hover()
        page.evaluate("void (window.scrolled = new Promise(done => addEventListener('scroll', done, {once: true})))")
        page.mouse.wheel(0, 300)
        page.evaluate("scrolled.then(() => true)")
        assert _steps(page) == whole


CONTRAST = """
selectors => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const linear = c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r / 255) + .7152 * linear(g / 255) + .0722 * linear(b / 255);
  const over = (colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  return selectors.map(selector => {
    const element = document.querySelector(selector);
    const backgrounds = [];
    for (let e = element; e; e = e.parentElement) backgrounds.unshift(getComputedStyle(e).backgroundColor);
    const back = over(backgrounds), ink = over([...backgrounds, getComputedStyle(element).color]);
    const [a, b] = [light(ink), light(back)].sort((x, y) => y - x);
    return [selector, (a + .05) / (b + .05)];
  });
}
"""


def test_light_and_dark_differ_and_both_can_be_read(browser: Any, address: str) -> None:
    pages = {}
    for scheme in ("light", "dark"):
        with Visit(browser, f"{address}#episode-2", color_scheme=scheme) as page:
            pages[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            page.evaluate(
                "kinds => document.querySelectorAll('.episode:not([hidden]) .token').forEach((token, n) => {"
                "token.className = `token ${kinds[n % 3]}`; token.style.setProperty('--heat', 1); })",
                ["hot", "harder", "easier"],
            )
            roles = [f".role-{role} .label b" for role in ("context", "action", "env_output", "warning")]
            selectors = ["body", ".quiet", "nav a", ".interval", "button", *roles, ".token.hot", ".token.harder"]
            for selector, ratio in page.evaluate(CONTRAST, [*selectors, ".token.easier", ".label span"]):
                assert ratio >= 4.5, (scheme, selector, ratio)
    assert pages == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 24)"}


def test_print_has_the_curves_and_one_episode_and_no_controls(browser: Any, address: str) -> None:
    with Visit(browser, f"{address}#episode-2") as page:
        page.emulate_media(media="print", color_scheme="dark")
        for selector in ("nav", ".controls", ".chart button", "#readout", "details"):
            assert not any(element.is_visible() for element in page.locator(selector).all()), selector
        assert all(chart.is_visible() for chart in page.locator(".chart > svg").all())
        assert page.locator("#summary table").is_visible() and page.locator("#episode-2").is_visible()
        assert page.locator("#episode-1").is_hidden()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_everything_that_can_be_used_has_a_name_and_shows_its_focus(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        nameless = page.eval_on_selector_all(
            "button, input, select, summary, a, [tabindex='0']",
            "all => all.filter(e => !(e.getAttribute('aria-label') || (e.labels?.[0] ?? e).textContent).trim())"
            ".map(e => e.outerHTML.slice(0, 200))",
        )
        assert nameless == []
        assert page.locator("main").count() == page.locator("header").count() == page.locator("footer").count() == 1
        assert page.locator("section:not([aria-labelledby])").count() == 0
        assert page.locator("th:not([scope])").count() == 0
        assert page.locator("table").count() == page.locator("table caption").count()
        assert page.locator("svg[role=application]").count() == page.locator(".chart").count()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
        assert len(ids) == len(set(ids))


def test_it_fits_a_narrow_screen(browser: Any, address: str) -> None:
    with Visit(browser, address) as page:
        page.set_viewport_size({"width": 360, "height": 700})
        for number in (1, page.locator(".episode").count()):
            page.select_option("#episode", f"episode-{number}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_hostile_text_stays_text(browser: Any, address: str, run: Path) -> None:
    assert (run / "report.html").stat().st_size <= MOST_BYTES
    with Visit(browser, address) as page:
        last = page.locator(".episode").last
        page.select_option("#episode", last.get_attribute("id"))
        text = last.inner_text()
        assert "<script>alert(1)</script></script><img src=x onerror=alert(2)>" in text
        assert "\\x1b[31mred\\x1b[0m \\u202egnp.exe\\u2066" in text and "\\r" in text and "\\x00end" in text
        assert "980000 characters omitted" in text
        assert "1 of the shown episodes are truncated" in page.locator("#episodes").inner_text()
        assert page.locator("img, iframe, object, embed, link, [onload], [onerror]").count() == 0
        assert page.locator("script:not([type])").count() == 1
        policy = page.locator("meta[http-equiv]").get_attribute("content")
        assert "default-src 'none'" in policy and "unsafe" not in policy


def test_without_javascript_the_tables_curves_and_episodes_are_there(browser: Any, address: str) -> None:
    with Visit(browser, address, java_script_enabled=False) as page:
        assert page.locator("#summary table").is_visible()
        assert all(chart.is_visible() for chart in page.locator(".chart > svg").all())
        assert page.locator(".chart > svg .line").count() >= page.locator(".chart").count()
        assert all(episode.is_visible() for episode in page.locator(".episode").all())
        assert not any(control.is_visible() for control in page.locator(".controls, button").all())
        page.locator(".chart summary").first.click()
        assert page.locator(".chart table").first.is_visible()


def test_two_runs_are_told_apart_and_filtered(browser: Any, run: Path, tmp_path: Path) -> None:
    """The second run has no checkpoints, and a hostile name and config."""
    other = tmp_path / "<i>other&"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("seed: 0", "seed: 7"))
    assert main(["report", str(run), str(other), "-o", str(tmp_path / "report.html")]) == 0
    with Visit(browser, (tmp_path / "report.html").as_uri()) as page:
        assert page.locator("#config tbody th").all_text_contents() == ["seed"]
        assert page.locator(".legend li").all_text_contents() == ["run", "<i>other&"]
        looks = page.eval_on_selector_all(
            ".chart:first-child .mark",
            "all => [...new Set(all.map(m => `${m.getAttribute('href')} ${m.className.baseVal}`))]",
        )
        assert len(looks) == 2 and len({look.split()[0] for look in looks}) == 2
        page.select_option("#run", label="<i>other&")
        assert page.locator(".episode:not([hidden])").get_attribute("data-run") == "1"
        page.click("#next")
        assert page.locator(".episode:not([hidden])").get_attribute("data-run") == "1"
        assert page.locator("fieldset").evaluate("fieldset => fieldset.disabled")
        assert "no checkpoints" in page.locator("#summary").inner_text()
        names = json.loads(page.locator("#curves").get_attribute("data-runs"))
        assert names == ["run", "<i>other&"]
