"""The command line: parse, call one function, show progress, map errors to exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from echo_cli.config import Config, find_config, load_config
from echo_cli.error import EchoError

app = typer.Typer(
    name="echo-cli",
    help="Train agents on what they write and on what their world writes back (ECHO).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# typer carries its own copy of click; the base of all its usage errors is reached through a public one.
_UsageProblem: Any = typer.BadParameter.__mro__[2]

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Config overrides.")]
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


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train agents on what they write and on what their world writes back (ECHO)."""


@app.command()
def train(
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
    """Train a policy: L = L_GRPO(action tokens) + λ · CE(environment tokens)."""
    if resume and overwrite:
        raise EchoError("--resume and --overwrite exclude each other", "continue the run, or replace it")
    words = [
        *(overrides or []),
        *_options(steps=steps, seed=seed, device=device, output_dir=output_dir, run_name=run_name),
        *_options(**{"objective.world_model_coeff": coeff}),
    ]
    loaded, path = _load(config, words, resume)
    if coeff is not None and loaded.objective.schedule == "step":
        raise EchoError("--lambda has no effect with objective.schedule: step", "set objective.schedule_values")
    if dry_run:
        _print_plan(loaded, path, as_json)
        return
    from echo_cli.interrupt import interruptible

    with interruptible() as interrupt:
        summary = _run(loaded, path, resume=resume, overwrite=overwrite, label="train", should_stop=interrupt)
    if as_json:
        print(json.dumps(summary))
    else:
        from echo_cli.display import print_run

        print_run(summary, str(path))
    if summary["status"] == "stopped":
        again = ["echo-cli", "train", "--resume", "--output-dir", str(path.parent), "--run-name", path.name]
        print(f"stopped and saved; to continue: {_shell(again)}", file=sys.stderr)
        raise typer.Exit(interrupt.exit_code)


@app.command("sweep-lambda", context_settings={"ignore_unknown_options": True})
def sweep_lambda(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="LAMBDA... [KEY.PATH=VALUE]...", help="λ values; words with = are config overrides."),
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
    """Train once per λ from the same start and seed, and compare. A λ that is finished is not run again."""
    from echo_cli.sweep import cells, parse_words

    coeffs, overrides = parse_words(words or [])
    options = _options(steps=steps, seed=seed, device=device, output_dir=output_dir)
    path_of = find_config(config or "toy")

    def config_of(coeff: float) -> Config:
        return load_config(path_of, [*overrides, *options, f"objective.world_model_coeff={coeff!r}"])

    first = config_of(coeffs[0])
    if first.objective.schedule == "step":
        raise EchoError("a sweep over λ has no effect with objective.schedule: step", "use schedule: constant")
    folder = Path(first.output_dir) / (run_name or f"sweep-{path_of.stem}")
    planned = cells(coeffs, config_of, folder, first.seed)
    if dry_run:
        for cell in planned:
            _print_plan(cell.config, cell.path, as_json)
        return
    _sweep(planned, folder, overwrite=overwrite, as_json=as_json)


@app.command("eval-heldout")
def eval_heldout(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    checkpoint: Annotated[str, typer.Option(help="best or latest.", metavar="NAME")] = "best",
    step: Annotated[int | None, typer.Option(help="A checkpoint by its step.", metavar="N")] = None,
    rollouts: Annotated[int, typer.Option(help="Rollouts per held-out task, for pass@1.", metavar="N", min=1)] = 4,
    command: Annotated[str | None, typer.Option(help="Held-out command to read out.", metavar="TEXT")] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on the frozen held-out pools and tasks, beside the policy it started from."""
    from echo_cli.heldout import evaluate_run

    if checkpoint not in ("best", "latest"):
        raise EchoError(f"no checkpoint '{checkpoint}'", "--checkpoint best or latest, or --step N")
    result = evaluate_run(run, checkpoint if step is None else step, rollouts, command, device)
    if as_json:
        print(json.dumps(result))
    else:
        from echo_cli.display import print_evaluation

        print_evaluation(result)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File or folder.", metavar="PATH")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw env-CE, reward and pass@1 against the step: PNG, SVG and the CSV behind them."""
    from echo_cli.plot import plot_run

    written = plot_run(runs, output)
    if as_json:
        print(json.dumps({name: str(path) for name, path in vars(written).items()}))
    else:
        print(written.png, written.svg, written.csv, sep="\n")


@app.command("shell-hook")
def shell_hook_command(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="The shell to print it for.")],
) -> None:
    """Print the function that makes `echo train ...` work at a prompt."""
    from echo_cli.shell_hook import shell_hook

    sys.stdout.write(shell_hook(shell))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. A traceback is only for bugs."""
    try:
        result = app(args=None if arguments is None else list(arguments), standalone_mode=False)
        return result if isinstance(result, int) else 0
    except EchoError as error:
        _complain(error.message, error.tip)
        return error.exit_code
    except _UsageProblem as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "echo-cli"
        # Nothing to say: the help was printed instead, because no command was given.
        if error.format_message():
            _complain(error.format_message(), f"{command} --help lists what it takes")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `... | head`; nothing more can be written to it.
        sys.stderr.close()
        return 1


def _complain(message: str, tip: str | None) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if tip:
        print(f"  tip: {tip}", file=sys.stderr)


def _options(**values: str | None) -> list[str]:
    """Command-line options as the overrides that they stand for."""
    return [
        f"{key}={json.dumps(value) if key in _TEXTS else value}" for key, value in values.items() if value is not None
    ]


_TEXTS = {"output_dir", "run_name", "device"}


def _load(name: str | None, words: list[str], resume: bool) -> tuple[Config, Path]:
    """The config of a run and the run's directory. Without --config, a resumed run keeps its own config."""
    source = find_config(name or "toy")
    config = load_config(source, words)
    run_name = config.run_name or f"{source.stem}-seed{config.seed}"
    if Path(run_name).name != run_name or run_name in (".", ".."):
        raise EchoError(f"'{run_name}' is not a run name", "a name without slashes; --output-dir says where")
    path = Path(config.output_dir) / run_name
    if resume:
        from echo_cli.run import open_run

        own = open_run(path)
        if name is None:
            config = load_config(own.config_path, words)
    return config, path


def _run(config: Config, path: Path, *, resume: bool, overwrite: bool, label: str, should_stop: Any) -> dict[str, Any]:
    from echo_cli.experiment import run_experiment
    from echo_cli.progress import progress

    with progress(config.steps, label) as show:
        return run_experiment(
            path,
            config,
            resume=resume,
            overwrite=overwrite,
            argv=sys.argv,
            on_start=lambda reason: print(f"{label}: {path} on {reason}", file=sys.stderr),
            on_row=show,
            should_stop=should_stop,
        )


def _sweep(planned: Any, folder: Path, *, overwrite: bool, as_json: bool) -> None:
    from echo_cli.display import print_sweep
    from echo_cli.interrupt import interruptible
    from echo_cli.plot import plot_sweep
    from echo_cli.run import is_run, open_run
    from echo_cli.session import check_same_config
    from echo_cli.sweep import finished_summary, table, write_sweep

    summaries = []
    with interruptible() as interrupt:
        for cell in planned:
            if is_run(cell.path) and not overwrite:
                check_same_config(open_run(cell.path), cell.config)
            summary = None if overwrite else finished_summary(cell)
            if summary is None:
                resume = is_run(cell.path) and not overwrite
                label = f"λ = {cell.coeff:g}"
                summary = _run(
                    cell.config, cell.path, resume=resume, overwrite=overwrite, label=label, should_stop=interrupt
                )
            if interrupt():
                print("stopped and saved; the same command continues the sweep", file=sys.stderr)
                raise typer.Exit(interrupt.exit_code)
            summaries.append(summary)
    write_sweep(folder, summaries)
    picture = plot_sweep([(f"λ = {cell.coeff:g}", [cell.path]) for cell in planned], folder)
    if as_json:
        print(json.dumps({"rows": table(summaries), "picture": str(picture.png)}))
    else:
        print_sweep(table(summaries), str(picture.png))


def _print_plan(config: Config, path: Path, as_json: bool) -> None:
    from echo_cli.plan import plan

    planned = plan(config, path)
    if as_json:
        print(json.dumps({"config": json.loads(config.model_dump_json()), "plan": planned}))
        return
    print(config.to_yaml(), end="")
    for name, value in planned.items():
        print(f"# {name}: {value}")


def _shell(words: Sequence[str]) -> str:
    import shlex

    return shlex.join(words)


if __name__ == "__main__":
    sys.exit(main())
