"""`echo-cli eval-heldout`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_cli.commands.option import AsJson, Device, print_json
from echo_cli.error import EchoError


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
        print_json(result)
    else:
        from echo_cli.display import print_evaluation

        print_evaluation(result)
