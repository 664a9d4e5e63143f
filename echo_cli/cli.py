"""The command line: parse, call one function, show progress, map errors to exit codes."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from echo_cli.config import Config, find_config, load_config
from echo_cli.error import EchoError
from echo_cli.storage import shown

if TYPE_CHECKING:
    from echo_cli.sweep import Cell

app = typer.Typer(
    name="echo-cli",
    help="Train agents on what they write and on what their world writes back (ECHO).",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# typer carries its own copy of click; the base of all its usage errors is reached through a public one.
_UsageProblem: Any = typer.BadParameter.__mro__[2]

Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Config overrides.")]
ConfigName = Annotated[str | None, typer.Option("--config", help="Shipped config or YAML file.", metavar="NAME|FILE")]
Steps = Annotated[str | None, typer.Option(help="Optimizer steps.", metavar="N")]
Seed = Annotated[str | None, typer.Option(help="Seed of the run.", metavar="N")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.", metavar="DEVICE")]
OutputDir = Annotated[str | None, typer.Option(help="Folder of the run directories.", metavar="DIR")]
RunName = Annotated[str | None, typer.Option(help="Name of the run directory.", metavar="NAME")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved config and the plan, do nothing.")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"echo-cli {version('echo-cli')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train agents on what they write and on what their world writes back (ECHO)."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(2)


@app.command()
def train(
    context: typer.Context,
    overrides: Overrides = None,
    config: ConfigName = None,
    steps: Steps = None,
    seed: Seed = None,
    coeff: Annotated[str | None, typer.Option("--lambda", help="Weight of the env term.", metavar="X")] = None,
    device: Device = None,
    output_dir: OutputDir = None,
    run_name: RunName = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its directory.")] = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a policy on its actions and its world's answers.

    L = L_GRPO(action tokens) + λ · CE(environment tokens)
    """
    from echo_cli.sweep import parse_coeff

    if resume and overwrite:
        raise EchoError("--resume and --overwrite exclude each other", "continue the run, or replace it")
    words = [
        *(overrides or []),
        *_options(steps=steps, seed=seed, device=device, output_dir=output_dir, run_name=run_name),
        *([f"objective.world_model_coeff={parse_coeff(coeff)!r}"] if coeff is not None else []),
    ]
    loaded, path = _load(config, words, resume)
    if coeff is not None and loaded.objective.schedule == "step":
        raise EchoError("--lambda has no effect with objective.schedule: step", "set objective.schedule_values")
    if dry_run:
        _print_plans([(loaded, path)], as_json, sweep=False)
        return
    from echo_cli.interrupt import interruptible

    with interruptible() as interrupt:
        summary = _run(
            loaded,
            path,
            resume=resume,
            overwrite=overwrite,
            argv=context.obj,
            label="train",
            should_stop=interrupt,
        )
    if as_json:
        _print_json(summary)
    else:
        from echo_cli.display import print_run

        print_run(summary, str(path))
    if summary["status"] == "stopped":
        again = ["echo-cli", "train", "--resume", "--output-dir", str(path.parent), "--run-name", path.name]
        print(f"stopped and saved; to continue: {shlex.join(again)}", file=sys.stderr)
        raise typer.Exit(interrupt.exit_code)


@app.command("sweep-lambda", context_settings={"ignore_unknown_options": True})
def sweep_lambda(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAMBDA|KEY.PATH=VALUE", help="λ values; words with = are config overrides."),
    ] = None,
    config: ConfigName = None,
    steps: Steps = None,
    seed: Seed = None,
    device: Device = None,
    output_dir: OutputDir = None,
    run_name: RunName = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train once per λ from the same start, and compare.

    A λ that is finished is not run again.
    """
    from echo_cli.sweep import cells, parse_words

    _refuse_options(context, words or [])
    coeffs, overrides = parse_words(words or [])
    options = _options(steps=steps, seed=seed, device=device, output_dir=output_dir, run_name=run_name)
    source = find_config("toy" if config is None else config)

    def config_of(coeff: float) -> Config:
        return load_config(source, [*overrides, *options, f"objective.world_model_coeff={coeff!r}"])

    first = config_of(coeffs[0])
    if first.objective.schedule == "step":
        raise EchoError("a sweep over λ has no effect with objective.schedule: step", "use schedule: constant")
    folder = _run_path(first, f"sweep-{source.stem}")
    planned = cells(coeffs, config_of, folder, first.seed)
    if dry_run:
        _print_plans([(cell.config, cell.path) for cell in planned], as_json, sweep=True)
        return
    _sweep(planned, folder, overwrite=overwrite, argv=context.obj, as_json=as_json)


@app.command("eval-heldout")
def eval_heldout(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    checkpoint: Annotated[str | None, typer.Option(help="best (default) or latest.", metavar="NAME")] = None,
    step: Annotated[int | None, typer.Option(help="A checkpoint by its step.", metavar="N")] = None,
    rollouts: Annotated[int, typer.Option(help="Rollouts per task, for pass@1.", metavar="N", min=0)] = 4,
    command: Annotated[str | None, typer.Option(help="Held-out command to read out.", metavar="TEXT")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on held-out commands and tasks.

    Beside it stands the policy that the run started from, over the same pairs.
    """
    from echo_cli.heldout import evaluate_run

    if checkpoint is not None and step is not None:
        raise EchoError("--checkpoint and --step exclude each other", "give one of them")
    if checkpoint not in (None, "best", "latest"):
        raise EchoError(f"no checkpoint '{checkpoint}'", "--checkpoint best or latest, or --step N")
    result = evaluate_run(run, (checkpoint or "best") if step is None else step, rollouts, command, device)
    if as_json:
        _print_json(result)
    else:
        from echo_cli.display import print_evaluation

        print_evaluation(result)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run directories.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder.", metavar="PATH")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the curves of one or more runs.

    env-CE, reward and pass@1 against the step: PNG, SVG and the CSV behind them.
    """
    from echo_cli.plot import plot_run

    written = plot_run(runs, output)
    if as_json:
        _print_json({name: str(path) for name, path in vars(written).items()})
    else:
        print(*map(shown, (written.png, written.svg, written.csv)), sep="\n")


@app.command("shell-hook")
def shell_hook_command(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell to print it for.")],
) -> None:
    """Print the function behind `echo train` at a prompt."""
    from echo_cli.shell_hook import shell_hook

    sys.stdout.write(shell_hook(shell))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A traceback is only for bugs."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a λ on a terminal that is not UTF-8, a file name that is no text
            stream.reconfigure(errors="backslashreplace")
    try:
        result = app(words, prog_name="echo-cli", standalone_mode=False, obj=words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except EchoError as error:
        _complain(error.message, error.tip)
        return error.exit_code
    except _UsageProblem as error:
        _complain(*_usage(error))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except OSError as error:
        _drop_stdout()
        if not isinstance(error, BrokenPipeError):  # of `... | head`, which has seen enough
            _complain(f"{error.filename or 'standard output'}: {error.strerror}", None)
        return 1


def _complain(message: str, tip: str | None) -> None:
    print(f"error: {shown(' '.join(message.split()))}", file=sys.stderr)
    if tip:
        print(f"  tip: {shown(' '.join(tip.split()))}", file=sys.stderr)


def _usage(error: Any) -> tuple[str, str]:
    """Message and tip for a usage error of typer, did-you-mean in the tip."""
    if guesses := getattr(error, "possibilities", None):
        return error.message, f"did you mean {' or '.join(guesses)}?"
    message, _, guess = error.format_message().partition(" Did you mean ")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "echo-cli"
    return message, f"did you mean {guess}" if guess else f"{command} --help lists what it takes"


def _drop_stdout() -> None:
    """Let what could not be written go, so that Python does not try it again while it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_json(value: Any) -> None:
    """`value` as one line of strict JSON, null for what is not finite."""
    print(json.dumps(json.loads(json.dumps(value), parse_constant=lambda _: None)))


def _options(**values: str | None) -> list[str]:
    """Command-line options as the overrides that they stand for."""
    return [
        f"{key}={json.dumps(value) if key in _TEXTS else value}" for key, value in values.items() if value is not None
    ]


_TEXTS = {"output_dir", "run_name", "device"}


def _refuse_options(context: typer.Context, words: Sequence[str]) -> None:
    """λ may be negative to the parser, so it lets unknown options through as words."""
    for word in words:
        if word.startswith("--"):
            known = [name for parameter in context.command.params for name in parameter.opts]
            nearest = difflib.get_close_matches(word.partition("=")[0], known, n=1)
            tip = f"did you mean {nearest[0]}?" if nearest else f"{context.command_path} --help lists what it takes"
            raise EchoError(f"No such option: {word}", tip)


def _load(name: str | None, words: list[str], resume: bool) -> tuple[Config, Path]:
    """The config of a run and the run's directory. Without --config, a resumed run keeps its own config."""
    source = find_config("toy" if name is None else name)
    config = load_config(source, words)
    path = _run_path(config, f"{source.stem}-seed{config.seed}")
    if resume:
        from echo_cli.run import is_half_made, open_run

        # A run killed while it was made has no config of its own: it starts with this one.
        if not is_half_made(path):
            own = open_run(path)
            if name is None:
                config = load_config(own.config_path, words)
    return config, path


def _run_path(config: Config, default_name: str) -> Path:
    name = default_name if config.run_name is None else config.run_name
    if Path(name).name != name or name == ".." or not name.isprintable():
        raise EchoError(f"'{name}' is not a run name", "a name without slashes; --output-dir says where")
    return Path(config.output_dir) / name


def _run(
    config: Config,
    path: Path,
    *,
    resume: bool,
    overwrite: bool,
    argv: Sequence[str],
    label: str,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    from echo_cli.experiment import run_experiment
    from echo_cli.progress import progress

    with progress(config.steps, label) as show:
        return run_experiment(
            path,
            config,
            resume=resume,
            overwrite=overwrite,
            argv=["echo-cli", *argv],
            on_start=lambda reason: print(f"{label}: {shown(path)} on {reason}", file=sys.stderr),
            on_row=show,
            should_stop=should_stop,
        )


def _sweep(planned: Sequence[Cell], folder: Path, *, overwrite: bool, argv: Sequence[str], as_json: bool) -> None:
    from echo_cli.display import print_sweep
    from echo_cli.interrupt import interruptible
    from echo_cli.plot import plot_sweep
    from echo_cli.sweep import run_sweep, table, write_sweep

    with interruptible() as interrupt:

        def train_cell(cell: Cell, resume: bool) -> dict[str, Any]:
            return _run(
                cell.config,
                cell.path,
                resume=resume,
                overwrite=overwrite,
                argv=argv,
                label=cell.label,
                should_stop=interrupt,
            )

        summaries = run_sweep(planned, train_cell, overwrite=overwrite, should_stop=interrupt)
    if summaries is None:
        again = ["echo-cli", *(word for word in argv if word != "--overwrite")]
        print(f"stopped and saved; to continue: {shlex.join(again)}", file=sys.stderr)
        raise typer.Exit(interrupt.exit_code)
    write_sweep(folder, summaries)
    picture = plot_sweep([(cell.label, [cell.path]) for cell in planned], folder)
    if as_json:
        _print_json({"rows": table(summaries), "picture": str(picture.png)})
    else:
        print_sweep(table(summaries), str(picture.png))
    diverged = [cell for cell, summary in zip(planned, summaries, strict=True) if summary["status"] == "diverged"]
    if diverged:
        tip = "its last checkpoint is intact; try a lower optim.lr"
        raise EchoError(f"{', '.join(cell.label for cell in diverged)} diverged", tip, exit_code=3)


def _print_plans(runs: Sequence[tuple[Config, Path]], as_json: bool, *, sweep: bool) -> None:
    from echo_cli.plan import plan

    plans = [{"config": json.loads(config.model_dump_json()), "plan": plan(config, path)} for config, path in runs]
    if as_json:
        _print_json({"runs": plans} if sweep else plans[0])
        return
    for number, ((config, _), planned) in enumerate(zip(runs, plans, strict=True)):
        print(*(["---"] if number else []), config.to_yaml(), sep="\n", end="")
        for name, value in planned["plan"].items():
            print(f"# {name}: {value}")
