"""Entry point: registers the commands and maps errors to exit codes."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, MutableMapping, Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from echo_cli.cli.commands.bench import bench
from echo_cli.cli.commands.dream import dream
from echo_cli.cli.commands.env import env
from echo_cli.cli.commands.eval_heldout import eval_heldout
from echo_cli.cli.commands.export import export
from echo_cli.cli.commands.inspect import inspect
from echo_cli.cli.commands.plot import plot
from echo_cli.cli.commands.pool import pool
from echo_cli.cli.commands.report import report
from echo_cli.cli.commands.sweep_lambda import SweepCommand, sweep_lambda
from echo_cli.cli.commands.traces import traces
from echo_cli.cli.commands.train import train
from echo_cli.cli.options import examples
from echo_cli.errors import EchoError
from echo_cli.terminal import guard_streams, guarded_streams, put, show_warning

app = typer.Typer(
    name="echo-cli",
    help="Train agents on their actions and their environment's outputs (ECHO).",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SPIN_SETTINGS = {"GOMP_SPINCOUNT": "1800", "KMP_BLOCKTIME": "200us"}
"""Waiting of OpenMP's threads before they sleep: iterations of libgomp, microseconds of libiomp."""

# typer vendors click; the base class of click's usage errors is reachable only through a public subclass.
_UsageProblem: Any = typer.BadParameter.__mro__[2]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        put(f"echo-cli {version('echo-cli')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train agents on their actions and their environment's outputs (ECHO)."""
    if context.invoked_subcommand is None:
        put(*context.get_help().split("\n"), err=True)
        raise typer.Exit(2)


app.command(
    "train", epilog=examples("train --steps 60 --seed 0", "train --config toy-grpo optim.lr=1e-3", configs=True)
)(train)
# A negative λ looks like an option to the parser, so unknown options pass as words and the command refuses them.
app.command(
    "sweep-lambda",
    cls=SweepCommand,
    context_settings={"ignore_unknown_options": True},
    epilog=examples("sweep-lambda 0 0.005 0.05 --seeds 0 1 2 --jobs 2", configs=True),
)(sweep_lambda)
app.command(
    "eval-heldout",
    epilog=examples(
        "eval-heldout outputs/toy-seed0",
        "eval-heldout --compare outputs/toy-seed0 outputs/toy-grpo-seed0",
        "eval-heldout --model tiny-machine --pool outputs/pool",
        configs=True,
    ),
)(eval_heldout)
app.command(
    "inspect", epilog=examples("inspect outputs/toy-seed0", "inspect outputs/toy-seed0 --episode 1", configs=True)
)(inspect)
app.command("report", epilog=examples("report outputs/toy-seed0"))(report)
app.command("dream", epilog=examples("dream outputs/toy-seed0", "dream outputs/toy-seed0 --score 24"))(dream)
app.command("plot", epilog=examples("plot outputs/toy-seed0 outputs/toy-grpo-seed0"))(plot)
app.command("export", epilog=examples("export outputs/toy-seed0 -o outputs/model"))(export)
app.add_typer(pool, name="pool")
app.add_typer(env, name="env")
app.add_typer(traces, name="traces")
app.command("bench", epilog=examples("bench --config toy --repeats 5", configs=True))(bench)


@app.command("shell-hook", epilog='\b\nExample, in bash or zsh:\n  eval "$(echo-cli shell-hook bash)"')
def shell_hook_command(
    shell: Annotated[str, typer.Argument(metavar="bash|zsh|fish", help="Shell that runs the function.")],
) -> None:
    """Print the shell function behind `echo train` at a prompt."""
    from echo_cli.cli.shell_hook import shell_hook

    put(*shell_hook(shell).removesuffix("\n").split("\n"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Only bugs cause a traceback."""
    if arguments is None:
        limit_spinning(os.environ)
        _open_closed_streams()
        sys.stderr = io.TextIOWrapper(io.BufferedWriter(_Lossy(2, "w", closefd=False)), line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # λ may not be encodable, nor an undecodable file name
            stream.reconfigure(errors="backslashreplace")
    if arguments is None:
        guard_streams()  # until the process ends, so for the traceback of a bug too
        warnings.showwarning = show_warning
        return _run(sys.argv[1:])
    with guarded_streams():
        return _run(list(arguments))


def _run(words: list[str]) -> int:
    code = 0
    try:
        with _unwound_by_signals():
            result = app(words, prog_name="echo-cli", standalone_mode=False, obj=words)
        code = result if isinstance(result, int) else 0
        sys.stdout.flush()
        return code
    except EchoError as error:
        _complain(error.message, error.tip)
        return error.exit_code
    except _UsageProblem as error:
        from echo_cli.cli.tips import usage_tip

        has_guesses = bool(getattr(error, "possibilities", None))
        message = error.message if has_guesses else error.format_message().partition(" Did you mean ")[0]
        _complain(message, usage_tip(typer.main.get_command(app), words, error))
        return 2
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except OSError as error:
        _drop_stdout()
        if not isinstance(error, BrokenPipeError):  # as in `... | head`
            _complain(f"{error.filename or 'standard output'}: {error.strerror}", None)
        return code or 1  # a run that was interrupted has saved, whatever became of its output


class _Lossy(io.FileIO):
    """A file that drops what cannot be written: a run outlives the terminal, pipe or disk behind its progress."""

    def write(self, data: Any) -> int:
        """Write `data`, or drop it, and return its size in bytes."""
        with contextlib.suppress(OSError):
            written = super().write(data)
            if written is not None:  # None: the pipe is full and not blocking
                return written
        return len(data)


def _open_closed_streams() -> None:
    """Open the null device in place of closed standard streams, or the next file to be opened would be one of them."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The null device gets the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep soon at a barrier, in this process and its children; call it before torch is imported.

    By default they spin: while one thread waits for a core that another program uses, the others burn theirs, and a
    step takes up to forty times as long. A variable that the user has set decides.
    """
    if not {"OMP_WAIT_POLICY", *SPIN_SETTINGS} & environment.keys():
        environment.update(SPIN_SETTINGS)


@contextlib.contextmanager
def _unwound_by_signals() -> Iterator[None]:
    """Exit on Ctrl-C, SIGTERM and SIGHUP, removing unfinished files and ending children.

    A signal that already has a handler, or is ignored, keeps its disposition.

    Raises:
        SystemExit: at one of these signals, with the exit code that shells report. Unlike KeyboardInterrupt, typer does
            not catch it.
    """

    def leave(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            with contextlib.suppress(OSError):
                os.write(2, b"\ninterrupted\n")
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread()
    deadly = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if ours else ()  # no other thread may set handlers
    defaults = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number in deadly if (handler := signal.getsignal(number)) in defaults}
    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _complain(message: str, tip: str | None) -> None:
    put(f"error: {' '.join(message.split())}", err=True)
    if tip:
        put(f"  tip: {' '.join(tip.split())}", err=True)


def _drop_stdout() -> None:
    """Discard unwritten output, so that Python does not retry the write at exit."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
