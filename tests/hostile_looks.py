"""Every command with every kind of hostile input that it takes, and the table of SECURITY.md, the result.

`python tests/hostile_looks.py` runs them all and writes the table.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from hostile_inputs import SECRETS, HostileInputs, train_run
from hostile_server import HostileServer
from hostile_texts import UNPRINTABLE
from watched_commands import ROOT, Recorder, Seen, WatchedCommands, changed_files, snapshot, watched_commands

SECURITY = ROOT / "SECURITY.md"
BEGIN, END = "<!-- commands: written by tests/hostile_looks.py -->", "<!-- end of commands -->"

KINDS = {
    "config": "config: environment",
    "config-code": "config: model code",
    "run": "run: environment",
    "run-code": "run: model code",
    "pool": "pool",
    "model": "model folder",
    "traces": "traces",
    "server": "server's answers",
}
"""Headings of the table by kind of input."""

Verdict = Literal["reads", "refuses", "asks", "acts"]
_STRENGTH: tuple[Verdict, ...] = ("reads", "refuses", "asks", "acts")

ENVIRONMENT = ("--allow-environment",)
CODE = ("--trust-remote-code",)
FETCH = ("--fetch-model",)


@dataclass(frozen=True)
class Look:
    """One command line: `command` is its row of the table, `kind` its column; braces hold fields of `Places`."""

    command: str
    kind: str
    words: str
    allow: tuple[str, ...] = ()
    """Words of a person who wants it to act."""
    stdin: str = ""

    @property
    def name(self) -> str:
        return f"{self.command} ← {self.kind}: {self.words}"


def _each(
    command: str, kind: str, words: str, variants: Sequence[str], allow: tuple[str, ...] = (), stdin: str = ""
) -> list[Look]:
    return [Look(command, kind, words.replace("*", variant), _allowing(allow, variant), stdin) for variant in variants]


def _allowing(allow: tuple[str, ...], variant: str) -> tuple[str, ...]:
    return (*allow, "--import-from", "{elsewhere}") if variant == "class" else allow


_SOURCES = ("command", "class", "url")
_OUT = "--output-dir {out}"
_TALK = "ls\nexit\n"

LOOKS: tuple[Look, ...] = (
    *_each("train", "config", f"train --config {{config_*}} {_OUT}", _SOURCES),
    Look("train", "config-code", f"train --config {{config_code}} {_OUT}", CODE),
    Look("train", "model", f"train --config hf-smoke model.path={{model}} --steps 1 {_OUT}", CODE),
    Look("train", "model", f"train --config hf-smoke model.path={{pickled_model}} --steps 1 {_OUT}"),
    Look("train", "model", f"train --config hf-smoke model.path={{adapter_of_hub}} --steps 1 {_OUT}", FETCH),
    Look("train", "traces", f"train {{on_traces}} {_OUT}"),
    Look("train", "server", f"train --config {{config_server}} {_OUT}"),
    *_each(
        "train --resume", "run", "train --resume --output-dir {runs} --run-name run-* --steps 5", _SOURCES, ENVIRONMENT
    ),
    Look("train --resume", "run-code", "train --resume --output-dir {runs} --run-name run-code --steps 2", CODE),
    Look("train --resume", "run-code", "train --resume --output-dir {runs} --run-name run-hub --steps 2", FETCH),
    *_each("train --dry-run", "config", f"train --dry-run --config {{config_*}} {_OUT}", _SOURCES),
    Look("train --dry-run", "config-code", f"train --dry-run --config {{config_code}} {_OUT}", CODE),
    *_each(
        "train --dry-run", "run", "train --dry-run --resume --output-dir {runs} --run-name run-* --steps 5", _SOURCES
    ),
    Look(
        "train --dry-run",
        "run-code",
        "train --dry-run --resume --output-dir {runs} --run-name run-code --steps 2",
        CODE,
    ),
    Look("train --dry-run", "model", f"train --dry-run --config hf-smoke model.path={{model}} {_OUT}", CODE),
    Look("train --dry-run", "model", f"train --dry-run --config hf-smoke model.path=someone/model {_OUT}"),
    Look("train --dry-run", "traces", f"train --dry-run {{on_traces}} {_OUT}"),
    Look("train --dry-run", "server", f"train --dry-run --config {{config_server}} {_OUT}"),
    *_each("sweep-lambda", "config", f"sweep-lambda 0 --config {{config_*}} {_OUT}", ("command",)),
    Look("sweep-lambda", "config-code", f"sweep-lambda 0 --config {{config_code}} {_OUT}", CODE),
    *_each("sweep-lambda --dry-run", "config", f"sweep-lambda 0 --dry-run --config {{config_*}} {_OUT}", _SOURCES),
    Look("sweep-lambda --dry-run", "config-code", f"sweep-lambda 0 --dry-run --config {{config_code}} {_OUT}", CODE),
    *_each("eval-heldout", "run", "eval-heldout {run_*} -o {out}/", _SOURCES, ENVIRONMENT),
    Look("eval-heldout", "run-code", "eval-heldout {run_code} --rollouts 0 -o {out}/", CODE),
    Look("eval-heldout", "run-code", "eval-heldout {run_hub} --rollouts 0 -o {out}/", FETCH),
    Look("eval-heldout", "pool", "eval-heldout {finished} --rollouts 0 --pool {pool} -o {out}/"),
    *_each("eval-heldout --rollouts 0", "run", "eval-heldout {run_*} --rollouts 0 -o {out}/", _SOURCES),
    Look("eval-heldout --compare", "run", "eval-heldout --compare {run_url} {run_url} -o {out}/", ENVIRONMENT),
    Look(
        "eval-heldout --compare",
        "run-code",
        "eval-heldout --compare {of_model} {run_code} --rollouts 0 -o {out}/",
        CODE,
    ),
    Look(
        "eval-heldout --compare",
        "pool",
        "eval-heldout --compare {finished} {finished} --rollouts 0 --pool {pool} -o {out}/",
    ),
    *_each(
        "eval-heldout --model", "config", "eval-heldout --model tiny-base --pool {pool} --config {config_*}", _SOURCES
    ),
    Look(
        "eval-heldout --model", "config-code", "eval-heldout --model {model} --pool {pool} --config {config_code}", CODE
    ),
    Look("eval-heldout --model", "pool", "eval-heldout --model tiny-base --pool {pool}"),
    Look("eval-heldout --model", "model", "eval-heldout --model {model} --pool {pool}", CODE),
    Look("eval-heldout --model", "model", "eval-heldout --model {pickled_model} --pool {pool}"),
    Look("eval-heldout --model", "model", "eval-heldout --model {templated_model} --pool {pool}"),
    Look("eval-heldout --model", "model", "eval-heldout --model {adapter_of_hub} --pool {pool}", FETCH),
    *_each("dream", "run", "dream {run_*}", _SOURCES, ENVIRONMENT, _TALK),
    Look("dream", "run-code", "dream {run_code}", CODE, _TALK),
    *_each("dream --list-tasks", "run", "dream {run_*} --list-tasks", _SOURCES, ENVIRONMENT),
    Look("dream --list-tasks", "run-code", "dream {run_code} --list-tasks"),
    *_each("dream --score", "run", "dream {run_*} --score 1 --max-tokens 4", _SOURCES),
    Look("dream --score", "run-code", "dream {run_code} --score 1 --max-tokens 4", CODE),
    Look("dream --score", "pool", "dream {finished} --score 1 --max-tokens 4 --pool {pool}"),
    *_each("inspect", "run", "inspect {run_*}", _SOURCES),
    *_each("inspect", "run", "inspect {run_*} --episode 1 --checkpoint best --against initial", _SOURCES),
    Look("inspect", "run-code", "inspect {run_code}"),
    Look("inspect", "run-code", "inspect {run_code} --episode 1"),
    Look("inspect", "run-code", "inspect {run_hub}"),
    Look("inspect", "pool", "inspect {pool}"),
    Look("inspect", "model", "inspect {traces} --model {model}", CODE),
    Look("inspect", "model", "inspect {traces} --episode 1 --model {pickled_model}"),
    Look("inspect", "model", "inspect {traces} --model {templated_model}"),
    Look("inspect", "model", "inspect {traces} --model {adapter_of_hub}"),
    Look("inspect", "traces", "inspect {traces}"),
    Look("inspect", "traces", "inspect {traces} --episode 1"),
    *_each("report", "run", "report {run_*}", _SOURCES),
    Look("report", "run-code", "report {run_code} -o {out}/report.html"),
    Look("report", "run-code", "report {run_hub} -o {out}/hub.html"),
    *_each("plot", "run", "plot {run_*}", _SOURCES),
    Look("plot", "run-code", "plot {run_code}"),
    *_each("export", "run", "export {run_*} -o {out}/model-*", _SOURCES),
    Look("export", "run-code", "export {run_code} -o {out}/model-code"),
    *_each("pool build", "config", "pool build {out}/pool-* --config {config_*}", _SOURCES),
    Look("pool build", "config-code", "pool build {out}/pool-code --config {config_code}", CODE),
    *_each("pool build", "run", "pool build {out}/pool-run-* --actor {run_*}", _SOURCES, ENVIRONMENT),
    Look("pool build", "run-code", "pool build {out}/pool-run-code --actor {run_code}", CODE),
    Look("pool show", "pool", "pool show {pool}"),
    Look("pool show", "pool", "pool show {pool} --episode 1"),
    *_each("env check", "config", "env check {config_*}", _SOURCES),
    Look("env check", "config-code", "env check {config_code}", CODE),
    Look("env check", "model", "env check hf-smoke model.path={model}", CODE),
    Look("env check", "model", "env check hf-smoke model.path={adapter_of_hub}", FETCH),
    Look("env check", "server", "env check {config_server}"),
    *_each("env check --model", "config", "env check {config_*} --model", _SOURCES),
    Look("env check --model", "config-code", "env check {config_code} --model", CODE),
    Look("env check --model", "model", "env check hf-smoke model.path={model} --model", CODE),
    Look("env check --model", "server", "env check {config_server} --model"),
    Look("traces import", "traces", "traces import openai {chats} --skip-bad -o {out}/imported.jsonl"),
    Look("traces stats", "traces", "traces stats {traces}"),
    Look("traces export", "run", "traces export {run_command} --to openai -o {out}/run.jsonl"),
    Look("traces export", "run-code", "traces export {run_code} --to echo -o {out}/run-code.jsonl"),
    Look("traces export", "pool", "traces export {pool} --to masks -o {out}/pool.jsonl"),
    Look("traces export", "traces", "traces export {traces} --to openai -o {out}/traces.jsonl"),
    *_each(
        "traces export", "config", "traces export {traces} --to masks --config {config_*} -o {out}/*.jsonl", _SOURCES
    ),
    Look(
        "traces export",
        "config-code",
        "traces export {traces} --to masks --config {config_code} -o {out}/code.jsonl",
        CODE,
    ),
    *_each("bench", "config", "bench --config {config_*} --repeats 1", _SOURCES),
    Look("bench", "config-code", "bench --config {config_code} --repeats 1", CODE),
    Look("bench", "model", "bench --config hf-smoke model.path={model} --repeats 1", CODE),
)

WITHOUT_INPUT = {"traces formats", "traces schema", "shell-hook"}
"""Commands that read nothing that others made."""


@dataclass(frozen=True)
class Places:
    """Paths of the hostile inputs, by the names that the looks use."""

    inputs: HostileInputs
    server: HostileServer
    out: Path
    finished: Path
    of_model: Path
    """A run of a Hugging Face model."""

    def fill(self, word: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda match: str(getattr(self, match[1])), word)

    @property
    def elsewhere(self) -> Path:
        return self.inputs.elsewhere

    @property
    def runs(self) -> Path:
        """Folder of the runs, all of which exist afterwards."""
        _ = [getattr(self, f"run_{name}") for name in (*_SOURCES, "code", "hub")]
        return self.inputs.root / "runs"

    @cached_property
    def run_command(self) -> Path:
        return self._run("command")

    @cached_property
    def run_class(self) -> Path:
        return self._run("class")

    @cached_property
    def run_url(self) -> Path:
        return self._run("url")

    def _run(self, environment: str) -> Path:
        source = self.inputs.environments[environment]
        return self.inputs.run(f"run-{environment}", source, evaluation={"heldout_rollouts": 1})

    def run_of_server(self, mode: str) -> Path:
        """Return a run whose environment is the hostile server; it is made at the first call."""
        source, name = self.inputs.server_at(self.server.url(mode)), f"run-server-{mode}"
        folder = self.inputs.root / "runs" / name
        return folder if folder.exists() else self.inputs.run(name, source, evaluation={"heldout_rollouts": 1})

    @cached_property
    def run_code(self) -> Path:
        """A run of a model with code, which also every checkpoint has."""
        return self.inputs.run_of_model(
            "run-code", self.of_model, {"path": str(self.inputs.model), "trust_remote_code": True}
        )

    @cached_property
    def run_hub(self) -> Path:
        """A run of a model that would have to be fetched."""
        return self.inputs.run_of_model("run-hub", self.of_model, {"path": "someone/model", "trust_remote_code": True})

    @cached_property
    def config_command(self) -> Path:
        return self.inputs.config("config-command", self.inputs.environments["command"])

    @cached_property
    def config_class(self) -> Path:
        return self.inputs.config("config-class", self.inputs.environments["class"])

    @cached_property
    def config_url(self) -> Path:
        return self.inputs.config("config-url", self.inputs.environments["url"])

    @cached_property
    def config_code(self) -> Path:
        model = {"kind": "hf", "path": str(self.model), "trust_remote_code": True}
        return self.inputs.config("config-code", model=model)

    @cached_property
    def config_server(self) -> Path:
        return self.inputs.config_of_server("config-server", self.server.url("escapes"))

    @property
    def on_traces(self) -> str:
        alone = "environment.none=true rollout.tasks_per_step=0 rollout.explorers=0 objective.use_rl=false"
        split = "traces.per_step=2 traces.split.validation=0.2"
        return f"--steps 1 threads=1 {alone} {split} traces.path={self.traces}"

    @property
    def model(self) -> Path:
        return self.inputs.model

    @property
    def pickled_model(self) -> Path:
        return self.inputs.pickled_model

    @property
    def templated_model(self) -> Path:
        return self.inputs.templated_model

    @property
    def adapter_of_hub(self) -> Path:
        return self.inputs.adapter_of_hub

    @property
    def pool(self) -> Path:
        return self.inputs.pool

    @property
    def traces(self) -> Path:
        return self.inputs.traces

    @property
    def chats(self) -> Path:
        return self.inputs.chats


@dataclass(frozen=True)
class Marks:
    """What a command did because of its input."""

    seen: Seen
    markers: tuple[str, ...]
    """Markers of executed code."""
    requests: tuple[str, ...]
    """Requests to the recorder."""
    sent: tuple[str, ...]
    """Names of variables whose values were in a request to the recorder."""
    revealed: tuple[str, ...]
    """Names of variables whose values were found in the output or in a file."""
    written: tuple[Path, ...]
    """Files and folders that it wrote, or tried to, outside its output folder, the temporary one and the home."""
    logs: tuple[str, ...]
    """Texts of the logs that it wrote, those of a sweep's runs."""

    @property
    def acted(self) -> bool:
        return bool(self.markers or self.requests)

    @property
    def unprintable(self) -> bool:
        """Whether the terminal received a character that only hostile text contains."""
        return any(character in self.seen.text for character in UNPRINTABLE)


class HostileSet:
    """The hostile inputs, and the process in which commands look at them."""

    def __init__(self, root: Path, places: Places, recorder: Recorder, watched: WatchedCommands) -> None:
        self.root = root
        self.places = places
        self.recorder = recorder
        self.watched = watched
        self._looked: dict[tuple[Look, bool], Marks] = {}

    def look(self, look: Look, *, allowed: bool = False) -> Marks:
        """Run the command of a look once, with its words of consent if `allowed`."""
        if (look, allowed) not in self._looked:
            words = " ".join([look.words, *(look.allow if allowed else ())])
            filled = self.places.fill(words).split()
            self._looked[look, allowed] = self.run(*filled, stdin=look.stdin, until_marked=allowed)
        return self._looked[look, allowed]

    def run(self, *words: str, stdin: str = "", until_marked: bool = False) -> Marks:
        """Run a command in the folder with the shadowing modules, and find what it did.

        Args:
            words: words of the command line; names in braces are fields of `Places`.
            until_marked: whether to end the command at its first marker.
        """
        words = tuple(self.places.fill(word) for word in words)
        inputs, out = self.places.inputs, self.places.out
        folder = inputs.elsewhere
        if out.exists():  # moved, not deleted: a process of the last command may still write there for a moment
            out.rename(Path(tempfile.mkdtemp(dir=self.root / "old")) / "out")
        out.mkdir()
        inputs.found()
        before, asked = snapshot(self.root), len(self.recorder.requests)
        until = inputs.markers if until_marked else None
        seen = self.watched.run(*words, cwd=folder, stdin=stdin, until=until)
        requests = self.recorder.requests[asked:]
        changed = changed_files(before, self.root)
        written = [path for path in changed if path.parent != inputs.markers and path.is_file()]
        shown = [seen.output, *(path.read_bytes() for path in written)]
        logs = tuple(path.read_text() for path in written if path.suffix == ".log")
        sent = _named_in([request.encode() for request in requests])
        astray = self._astray([*changed, *(Path(name) for name in seen.written if name.startswith("/"))])
        return Marks(seen, tuple(inputs.found()), tuple(requests), sent, _named_in(shown), astray, logs)

    def _astray(self, paths: Sequence[Path]) -> tuple[Path, ...]:
        """Return the paths that are not where every command may write."""
        here = [self.places.out, *(self.root / name for name in ("tmp", "home", "markers", "watched.log"))]
        here += [Path("/dev"), Path("/proc/self")]
        return tuple(path for path in paths if not any(path.is_relative_to(folder) for folder in here))

    def verdict(self, look: Look) -> Verdict:
        """Return what a command does with a hostile input."""
        marks = self.look(look)
        if marks.acted:
            return "acts"
        if marks.seen.code == 0:
            return "reads"
        return "asks" if look.allow and self.look(look, allowed=True).acted else "refuses"

    def table(self) -> str:
        """Return the table of commands and kinds of input, as Markdown; a cell has the strongest of its verdicts."""
        cells: dict[tuple[str, str], Verdict] = {}
        for look in LOOKS:
            key = (look.command, look.kind)
            cells[key] = max(cells.get(key, "reads"), self.verdict(look), key=_STRENGTH.index)
        rows = [f"| command | {' | '.join(KINDS.values())} |", f"|---|{'---|' * len(KINDS)}"]
        for command in dict.fromkeys(look.command for look in LOOKS):
            rows.append(f"| `{command}` | {' | '.join(cells.get((command, kind), '–') for kind in KINDS)} |")
        return "\n".join(rows)


def _named_in(texts: Sequence[bytes]) -> tuple[str, ...]:
    """Return the names of the secrets whose values are in one of the texts."""
    return tuple(name for name, value in SECRETS.items() if any(value.encode() in text for text in texts))


@contextmanager
def hostile_set(root: Path) -> Iterator[HostileSet]:
    """Make the hostile set below `root`, an empty folder."""
    recorder = Recorder()
    for name in ("markers", "home", "tmp", "author", "runs", "old"):
        (root / name).mkdir()
    finished = train_run(root / "author" / "finished")
    inputs = HostileInputs(root, finished, recorder.url)
    server = HostileServer(recorder.url)
    of_model = train_run(root / "author" / "of-model", inputs.plain_model)
    try:
        with watched_commands(root, _environment(root, recorder)) as watched:
            yield HostileSet(root, Places(inputs, server, root / "out", finished, of_model), recorder, watched)
    finally:
        server.stop()
        recorder.stop()


def _environment(root: Path, recorder: Recorder) -> dict[str, str]:
    """Return the variables of the commands: secrets, a home without files, and the recorder as hub and proxy."""
    passed = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    proxies = {name: recorder.url for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "HF_ENDPOINT")}
    places = {"HOME": str(root / "home"), "TMPDIR": str(root / "tmp"), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    return {**passed, **proxies, **places, **SECRETS, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def written_table(text: str) -> str:
    """Return the table in the text of SECURITY.md."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def _main() -> None:
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder, hostile_set(Path(folder)) as hostile:
        table = hostile.table()
    if SECURITY.is_file() and "--print" not in sys.argv:
        before, _, rest = SECURITY.read_text().partition(BEGIN)
        SECURITY.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")
    print(table)


if __name__ == "__main__":
    _main()
