"""Every command with hostile inputs: what only looks executes, imports, starts, contacts and reveals nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from hostile_looks import FETCH, LOOKS, SECURITY, WITHOUT_INPUT, HostileSet, Look, hostile_set, written_table
from hostile_server import MODES
from hostile_texts import ESCAPES, HTML, UNPRINTABLE

from echo_cli.cli.main import app
from echo_cli.config.schema import Config
from echo_cli.files import sha256_of
from echo_cli.reports.sweep_page import write_report
from echo_cli.sweeps.arms import lambda_arm
from echo_cli.sweeps.files import sweep_object
from echo_cli.sweeps.results import CellResult, results_of, with_figures
from echo_cli.sweeps.runner import CellStatus
from echo_cli.sweeps.tables import sweep_tables

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # the first test makes the inputs, with two short trainings

LOOKING = {"train --dry-run", "sweep-lambda --dry-run", "inspect", "report", "plot", "export", "pool show"}
LOOKING |= {"traces import", "traces export", "dream --list-tasks", "dream --score", "eval-heldout --rollouts 0"}
"""Commands that never act, whatever their input."""
OF_OTHERS = {"run", "run-code", "pool", "model", "traces", "server"}
"""Kinds of input that never act without a word of the person."""
BESIDE_RUNS = {"train --resume", "report", "plot"}
"""Commands that write into the folders of their runs."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileSet]:
    with hostile_set(tmp_path_factory.mktemp("hostile")) as made:
        yield made


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.name)
def test_a_command_leaves_no_trace_of_what_its_input_wants(hostile: HostileSet, look: Look) -> None:
    marks = hostile.look(look)
    seen = marks.seen
    assert seen.code in (0, 1, 2), seen.text
    assert "Traceback" not in seen.text
    assert not marks.unprintable, seen.text
    assert not marks.revealed
    assert hostile.places.inputs.precious.read_text() == "precious\n"
    own = hostile.root / "runs"
    assert not [path for path in marks.written if look.command not in BESIDE_RUNS or not path.is_relative_to(own)]
    if look.command in LOOKING or look.kind in OF_OTHERS:
        assert not marks.acted
    if look.command in LOOKING:
        assert not seen.started and not seen.connected
        assert not [name for name in seen.imported if "marker" in name or name.startswith(str(hostile.root))]


def test_the_table_of_the_security_page_is_what_the_commands_do(hostile: HostileSet) -> None:
    assert written_table(SECURITY.read_text()) == hostile.table(), "python tests/hostile_looks.py writes it again"


def test_every_command_meets_the_hostile_inputs() -> None:
    tree = typer.main.get_command(app)

    def names(command: object, before: str) -> Iterator[str]:
        for name, found in getattr(command, "commands", {}).items():
            if getattr(found, "commands", None):
                yield from names(found, f"{before}{name} ")
            else:
                yield f"{before}{name}"

    met = {look.command.partition(" --")[0] for look in LOOKS}
    assert met | WITHOUT_INPUT == set(names(tree, ""))


@pytest.mark.parametrize("look", [look for look in LOOKS if look.allow], ids=lambda look: look.name)
def test_what_asks_acts_after_the_word_and_reveals_only_what_was_named(hostile: HostileSet, look: Look) -> None:
    if hostile.verdict(look) != "asks":
        return
    refused, marks = hostile.look(look), hostile.look(look, allowed=True)
    flags = [word for word in look.allow if word.startswith("--")]
    assert any(flag in text for flag in flags for text in (refused.seen.text, *refused.logs)), refused.seen.text
    assert not marks.unprintable and not marks.revealed
    named = "_url" in look.words or "run-url" in look.words or look.allow == FETCH  # a hub gets its own token
    assert marks.sent == (("HF_TOKEN",) if named else ())


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_hostile_server_gets_an_error_or_plays(hostile: HostileSet, mode: str) -> None:
    config = hostile.places.inputs.config_of_server(f"server-{mode}", hostile.places.server.url(mode))
    marks = hostile.run("env", "check", str(config))
    assert marks.seen.code in (0, 1, 2), marks.seen.text
    assert "Traceback" not in marks.seen.text
    assert marks.seen.text.count("error: ") == (marks.seen.code != 0)
    assert not marks.acted and not marks.revealed and not marks.unprintable, marks.seen.text
    assert not marks.seen.started
    assert marks.seen.peak_mb < 1500


SERVED = {
    "train": "--config {config} --output-dir {out}",
    "sweep-lambda": "0 --config {config} --output-dir {out}",
    "bench": "--config {config} --repeats 1",
    "pool build": "{out}/pool --config {config} --actor explorer",
    "eval-heldout": "{run} --allow-environment -o {out}/",
    "dream": "{run} --allow-environment",
}
"""Words of every command that plays in an environment, besides `env check`."""


@pytest.mark.parametrize(
    ("command", "mode"),
    [*((command, "echo") for command in SERVED), *((command, "errors") for command in ("train", "dream"))],
)
def test_nothing_that_a_server_sends_reaches_a_terminal_raw(hostile: HostileSet, command: str, mode: str) -> None:
    places = hostile.places
    config = places.inputs.config_of_server(f"served-{mode}", places.server.url(mode))
    words = SERVED[command].replace("{config}", str(config)).replace("{run}", str(places.run_of_server(mode)))
    marks = hostile.run(*command.split(), *words.split(), stdin="ls\nexit\n")
    assert marks.seen.code in (0, 1, 2), marks.seen.text
    assert "Traceback" not in marks.seen.text
    assert marks.seen.text.count("error: ") == (marks.seen.code != 0), marks.seen.text
    assert not marks.acted and not marks.revealed and not marks.unprintable, marks.seen.text
    assert not any(character in log for log in marks.logs for character in UNPRINTABLE)


def test_a_server_that_repeats_its_variables_reveals_none(hostile: HostileSet) -> None:
    config = hostile.places.inputs.config_of_own_server("own-server", "echo")
    marks = hostile.run("env", "check", str(config))
    assert "TAKEN=${MY_TOKEN}" in marks.seen.text and "HOME=/" in marks.seen.text, marks.seen.text
    assert not marks.revealed and not marks.unprintable, marks.seen.text


def test_a_changed_pool_is_refused(hostile: HostileSet) -> None:
    inputs = hostile.places.inputs

    def link(folder: Path) -> None:
        (folder / "trajectories.jsonl").unlink()
        (folder / "trajectories.jsonl").symlink_to(inputs.precious)

    changes = {
        "longer": lambda folder: (folder / "trajectories.jsonl").open("a").write("\n"),
        "linked": link,
        "gone": lambda folder: (folder / "trajectories.jsonl").unlink(),
    }
    for name, change in changes.items():
        pool = inputs.changed_pool(name, change)
        for words in (("pool", "show"), ("inspect",), ("eval-heldout", "--model", "tiny-base", "--pool")):
            marks = hostile.run(*words, str(pool))
            assert marks.seen.code == 2 and not marks.acted and not marks.unprintable, marks.seen.text


@pytest.mark.parametrize("kind", ["dots", "absolute"])
def test_a_checkpoint_or_pool_names_no_file_outside_itself(hostile: HostileSet, kind: str) -> None:
    inputs = hostile.places.inputs
    named = str(inputs.precious) if kind == "absolute" else "../../../../precious.txt"
    run = shutil.copytree(hostile.places.finished, hostile.root / "runs" / f"naming-{kind}")
    size, sha256 = inputs.precious.stat().st_size, sha256_of(inputs.precious)
    for meta in run.glob("checkpoints/step_*/meta.json"):
        record = json.loads(meta.read_text())
        record["files"][named] = {"bytes": size, "sha256": sha256}
        meta.write_text(json.dumps(record))
    said = [
        "inspect {} --episode 1 --checkpoint best",
        "eval-heldout {} --rollouts 0 -o {out}/",
        "export {} -o {out}/m",
    ]
    for words in (*said, "dream {} --score 1", "report {} --checkpoint best -o {out}/report.html"):
        marks = hostile.run(*words.replace("{}", str(run)).split())
        assert marks.seen.code == 1 and "lists a file outside the checkpoint" in marks.seen.text, marks.seen.text
        assert not marks.written and not list(hostile.places.out.rglob("*"))
    pool = inputs.changed_pool(f"naming-{kind}", lambda folder: _rename_pool(folder, named))
    for words in (f"pool show {pool}", f"traces export {pool} --to masks -o {{out}}/pool.jsonl"):
        marks = hostile.run(*words.split())
        assert marks.seen.code in (0, 2) and not marks.written and not marks.unprintable, marks.seen.text
    assert inputs.precious.read_text() == "precious\n"


def _rename_pool(folder: Path, name: str) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": name}))


def test_an_export_copies_no_file_to_which_a_checkpoint_links(hostile: HostileSet) -> None:
    run = shutil.copytree(hostile.places.finished, hostile.root / "runs" / "linking")
    for checkpoint in (run / "checkpoints").glob("step_*"):
        (checkpoint / "notes.txt").symlink_to(hostile.places.inputs.precious)
    marks = hostile.run("export", str(run), "-o", "{out}/linked")
    assert marks.seen.code == 2 and "is a link" in marks.seen.text
    assert not list(hostile.places.out.rglob("*"))


def _report_of_a_hostile_sweep(folder: Path) -> Path:
    """Write the page of a sweep whose config, command line and failed cells have hostile text."""
    folder.mkdir()
    text = f"{HTML}{ESCAPES}</style></script>\"'>"
    cells = with_figures([CellResult(text, lambda_arm(0.0), 0.0, 0, CellStatus("failed", text), None, [])])
    results = results_of(cells)
    sweep = {**sweep_object([Config()], cells, results), "rule": [text] * 3, "config": {text: text}}
    return write_report(folder, sweep, sweep_tables(results), command=text, pictures=[])


def test_the_report_of_a_hostile_run_or_sweep_executes_nothing_in_a_browser(hostile: HostileSet) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("chromium is not installed")
    hostile.look(next(look for look in LOOKS if look.words == "report {run_command}"))
    page_file = hostile.places.run_command / "report.html"
    assert not page_file.is_symlink()
    sweep_file = _report_of_a_hostile_sweep(hostile.root / "sweep")
    attack = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    attack += f"<img src='{hostile.recorder.url}/pixel'><iframe src='{hostile.recorder.url}/frame'></iframe>"
    attack += f"<link rel=stylesheet href='{hostile.recorder.url}/style'><base href='{hostile.recorder.url}'>"
    attack += "<a id=a href='javascript:document.title=1'>a</a>"
    titles = {page_file: "Report: run-command", sweep_file: "λ sweep: sweep"}
    # Pages with what escaping prevents, so that only their policy is left.
    unescaped = {path.with_name("unescaped.html"): title for path, title in titles.items()}
    for path, page in zip(titles, unescaped, strict=True):
        page.write_text(path.read_text().replace("</body>", f"{attack}</body>"))
    asked = len(hostile.recorder.requests)
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = driver.chromium.launch(executable_path=chromium, args=options)
        for path, named in (titles | unescaped).items():
            page, dialogs = browser.new_page(), []
            page.on("dialog", lambda dialog, dialogs=dialogs: (dialogs.append(dialog.message), dialog.dismiss()))
            page.goto(path.as_uri())
            title = page.title()
            if path in unescaped:
                page.evaluate("document.getElementById('a').click()")
                page.wait_for_timeout(200)
            assert page.title() == title == named
            assert not dialogs
        browser.close()
    # Chromium may open a connection to the address of a frame before the policy blocks it; it sends nothing.
    assert set(hostile.recorder.requests[asked:]) <= {"connection"}
