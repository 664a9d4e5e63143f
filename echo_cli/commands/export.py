"""`echo-cli export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_cli.commands.option import AsJson, is_step, print_json
from echo_cli.error import EchoError
from echo_cli.storage import shown


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model.", metavar="DIR")],
    checkpoint: Annotated[str, typer.Option(help="best, latest or a step.", metavar="NAME|N")] = "best",
    merge: Annotated[bool, typer.Option("--merge", help="Add a LoRA adapter to its base.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's model and its tokenizer to a folder.

    Of a Hugging Face model, what `from_pretrained` loads: the model, or the adapter.
    """
    if checkpoint not in ("best", "latest") and not is_step(checkpoint):
        raise EchoError(f"no checkpoint '{shown(checkpoint)}'", "--checkpoint best, latest or a step")

    from echo_cli.export import export_checkpoint

    which = int(checkpoint) if is_step(checkpoint) else checkpoint
    written = export_checkpoint(run, which, output, merge=merge)
    if as_json:
        files = list(written.files)
        print_json({"output": str(written.folder), "kind": written.kind, "step": written.step, "files": files})
    else:
        what = {"model": "the model", "adapter": "the adapter", "merged": "base and adapter as one model"}[written.kind]
        print(f"{shown(written.folder)}: {what}, of step {written.step}")
