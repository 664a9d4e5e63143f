"""`echo-cli export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_cli.cli.options import AsJson, checkpoint_named, print_json
from echo_cli.text import escape_unprintable


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
    which = checkpoint_named(checkpoint)

    from echo_cli.runs.export import export_checkpoint

    written = export_checkpoint(run, which, output, merge=merge)
    if as_json:
        files = list(written.files)
        print_json({"output": str(written.folder), "kind": written.kind, "step": written.step, "files": files})
    else:
        what = {"model": "the model", "adapter": "the adapter", "merged": "base and adapter as one model"}[written.kind]
        print(f"{escape_unprintable(written.folder)}: {what}, of step {written.step}")
