"""Options shared by the commands, and helpers that parse options and print results."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from echo_cli.cli.tips import option_tip
from echo_cli.config.loader import shipped_configs
from echo_cli.config.schema import Config
from echo_cli.config.section import Grants
from echo_cli.errors import EchoError
from echo_cli.runs.origin import Consent
from echo_cli.terminal import ask, put

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE", help="Config overrides, such as optim.lr=1e-3; train --dry-run prints every key."
    ),
]
Recordings = Annotated[
    list[Path], typer.Argument(metavar="FILE|RUN|POOL", help="Files, runs or pools with trajectories.")
]
ConfigName = Annotated[
    str | None, typer.Option("--config", help="Shipped config or YAML file. Default: toy.", metavar="NAME|FILE")
]
Steps = Annotated[str | None, typer.Option(help="Number of optimizer steps. Default: the config's.", metavar="N")]
Seed = Annotated[str | None, typer.Option(help="Random seed. Default: the config's.", metavar="N")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda. Default: the config's.", metavar="DEVICE")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code", help="Run the Python code in a model's folder; no config or run can ask for it."
    ),
]
FetchModel = Annotated[
    bool,
    typer.Option(
        "--fetch-model", help="Fetch the model from the hub, also one that a run or an adapter names, and tasks."
    ),
]
OutputDir = Annotated[
    str | None, typer.Option(help="Folder of the run directory. Default: the config's, outputs.", metavar="DIR")
]
RunName = Annotated[
    str | None,
    typer.Option(help="Name of the run directory. Default: CONFIG-seedN, or sweep-CONFIG for a sweep.", metavar="NAME"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
RunPaths = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.")]
OutputBesideRuns = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        help="Output file or folder. Default: the run directory; for several runs, their folder.",
        metavar="PATH",
    ),
]
ImportFrom = Annotated[
    Path | None,
    typer.Option(
        "--import-from", help="Folder of the config's classes, if they are not installed packages.", metavar="FOLDER"
    ),
]
PlainHttp = Annotated[
    bool,
    typer.Option("--allow-plain-http", help="Also send ${NAME} in headers over plain http to another machine."),
]
AllowEnvironment = Annotated[
    bool,
    typer.Option("--allow-environment", help="Act on the config of a run that was made elsewhere, without asking."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and the resolved config, then exit.")]


def examples(*lines: str, configs: bool = False) -> str:
    """Return the epilogue of a command's help: complete command lines and, with `configs`, the shipped configs."""
    text = ["\b", f"Example{'s' if len(lines) > 1 else ''}:", *(f"  echo-cli {line}" for line in lines)]
    if configs:
        names = f"Shipped configs: {', '.join(shipped_configs())}"
        wrapped = textwrap.wrap(names, _COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
        text += ["", "\b", *wrapped]
    return "\n".join(text)


_COLUMNS = 76


def command_group(purpose: str, *lines: str) -> typer.Typer:
    """Return a command group that, without a command, prints its help on stderr and exits with 2.

    Args:
        lines: examples in its help, without `echo-cli`.
    """
    group = typer.Typer(help=purpose, rich_markup_mode=None)

    @group.callback(invoke_without_command=True, help=purpose, epilog=examples(*lines))
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            put(*context.get_help().split("\n"), err=True)
            raise typer.Exit(2)

    return group


def print_json(value: Any) -> None:
    """Print `value` as one line of strict JSON, with null for non-finite numbers."""
    put(json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None)))


def as_overrides(words: Sequence[str], **values: str | None) -> list[str]:
    """Return command-line options as config overrides.

    Args:
        words: the overrides given beside the options.
        values: the options' values by key path, with `__` for a dot; None if not given.

    Raises:
        EchoError: an option and an override set the same key.
    """
    overrides = []
    for name, value in values.items():
        key = name.replace("__", ".")
        if value is None:
            continue
        for word in words:
            if word.partition("=")[0] == key:
                option = _OPTIONS.get(key, "--" + key.replace("_", "-"))
                raise EchoError(f"{option} and {word} both set {key}", "give one of them")
        overrides.append(f"{key}={json.dumps(value) if key in _TEXTS else value}")
    return overrides


def model_overrides(trust_remote_code: bool, fetch_model: bool = False) -> dict[str, str | None]:
    """Return the values of `--trust-remote-code` and `--fetch-model` for `as_overrides`."""
    return {
        "model__trust_remote_code": "true" if trust_remote_code else None,
        "model__fetch": "all" if fetch_model else None,
    }


def tokenizer_overrides(config: str | None, trust_remote_code: bool) -> list[str]:
    """Return the overrides of the optional config that names a tokenizer.

    Raises:
        EchoError: code is trusted that no config names.
    """
    words = as_overrides([], **model_overrides(trust_remote_code))
    if words and config is None:
        raise EchoError("--trust-remote-code has no effect without --config", "omit it")
    return words


def fetching_named(config: Config) -> Config:
    """Return the config of a command that acts, with leave to fetch the hub model and the tasks that it names."""
    granted = config.granted(replace(config.environment.grants, fetch=True))
    return granted.model_copy(update={"model": config.model.fetchable(), "sampler": config.sampler})


EnvironmentName = Annotated[
    str | None, typer.Option("--environment", help="One of several environments.", metavar="NAME")
]

_OPTIONS = {
    "objective.world_model_coeff": "--lambda",
    "model.trust_remote_code": "--trust-remote-code",
    "model.fetch": "--fetch-model",
}
_TEXTS = {"output_dir", "run_name", "device"}


def is_step(word: str) -> bool:
    """Return whether `word` is a step index of at most 18 digits."""
    return word.isascii() and word.isdecimal() and len(word) <= 18


def checkpoint_named(name: str, names: Sequence[str] = ("best", "latest"), option: str = "--checkpoint") -> str | int:
    """Parse a checkpoint from the command line: one of `names`, or a step index; `option` is where it was given.

    Raises:
        EchoError: `name` is neither.
    """
    if is_step(name):
        return int(name)
    if name not in names:
        raise EchoError(f"no checkpoint '{name}'", f"set {option} to {', '.join(names)} or a step")
    return name


def chosen_checkpoint(name: str | None, run: Path) -> str | int:
    """Parse the checkpoint of `run` from the command line, by default the best.

    A run without a best step uses its latest by default, and a line on stderr says so.

    Raises:
        EchoError: `name` is not a checkpoint's name.
    """
    if name is not None:
        return checkpoint_named(name)
    from echo_cli.runs.directory import RunDirectory

    checkpoints = RunDirectory(run).checkpoints
    if checkpoints.best_step() is None and (steps := checkpoints.steps()):
        put(f"no step was chosen on validation: the latest checkpoint is used (step {steps[-1]})", err=True)
        return "latest"
    return "best"


def grants_of(import_from: Path | None, plain_http: bool, fetch: bool = False) -> Grants:
    """Return the permissions of the command line; `fetch` is --fetch-model.

    Raises:
        EchoError: `import_from` is not a folder.
    """
    if import_from is not None and not import_from.is_dir():
        tip = "name the folder that contains the package or module of the class"
        raise EchoError(f"--import-from: {import_from} is not a folder", tip)
    return Grants(None if import_from is None else str(import_from.absolute()), plain_http, fetch)


def consent_of(label: str, grants: Grants, *, allowed: bool = False) -> Consent:
    """Return the rule of a command: it announces effects on stderr and, at a terminal, asks.

    Args:
        label: start of the command's lines.
        allowed: whether --allow-environment is given.
    """
    return Consent(allowed, grants, say=lambda line: put(f"{label}: {line}", err=True), ask=_agrees)


def _agrees(line: str) -> bool:
    if not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    put(line, err=True)
    with suppress(EOFError):
        return ask("allow it? [y/N] ", err=True).strip().lower() in ("y", "yes")
    return False


def refuse_options(context: typer.Context, words: Sequence[str]) -> None:
    """Refuse unknown options, which the parser passes on as words because a negative λ looks like one.

    Raises:
        EchoError: a word begins with `--`.
    """
    for word in words:
        if word.startswith("--"):
            tip = option_tip(context.command, context.command_path.split()[1:], word)
            raise EchoError(f"No such option: {word}", tip)


def refuse_overrides(runs: Sequence[str | Path]) -> None:
    """Refuse config overrides among the runs of a command that takes none.

    Raises:
        EchoError: an entry of `runs` is KEY=VALUE and no path.
    """
    for run in runs:
        key, equals, _ = str(run).partition("=")
        if equals and key and not Path(run).exists():
            raise EchoError(
                f"'{run}' is a config override, and this command takes none with a RUN",
                "omit it: a run keeps its own config; to choose the device: --device",
            )


def run_path(config: Config, default_name: str) -> Path:
    name = default_name if config.run_name is None else config.run_name
    if Path(name).name != name or name == ".." or not name.isprintable():
        raise EchoError(f"'{name}' is not a run name", "use a name without slashes; set its folder with --output-dir")
    return Path(config.output_dir) / name


def print_plans(runs: Sequence[tuple[Config, Path]], as_json: bool, *, sweep: bool, ranks: int = 1) -> None:
    from echo_cli.models.loading import check_model
    from echo_cli.traces.corpus import index_traces
    from echo_cli.training.plan import plan
    from echo_cli.training.trackers.tracking import check_trackers

    for config, _ in runs:
        check_trackers(config.track)
    # Most runs of a sweep share their model.
    for config in {(config.model, config.conversation): config for config, _ in runs}.values():
        check_model(config)
    # Each trace file is indexed once, however many runs use it.
    read = {traces: index_traces(traces) for traces in {config.traces for config, _ in runs} if traces is not None}
    plans = [
        {
            "config": json.loads(config.model_dump_json()),
            "plan": plan(config, path, None if config.traces is None else read[config.traces], ranks),
        }
        for config, path in runs
    ]
    if as_json:
        print_json({"runs": plans} if sweep else plans[0])
        return
    for number, ((config, _), planned) in enumerate(zip(runs, plans, strict=True)):
        put(*(["---"] if number else []))
        for name, value in planned["plan"].items():
            line = f"# {name}: {_listed(value)}"
            put(
                *textwrap.wrap(line, _COLUMNS, subsequent_indent="#   ", break_on_hyphens=False, break_long_words=False)
            )
        put("", *config.to_yaml().removesuffix("\n").split("\n"))


def _listed(value: Any) -> Any:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else value
