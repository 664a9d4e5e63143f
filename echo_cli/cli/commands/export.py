"""`echo-cli export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echo_cli.cli.options import (
    AllowEnvironment,
    AsJson,
    FetchModel,
    PlainHttp,
    TrustRemoteCode,
    as_overrides,
    chosen_checkpoint,
    consent_of,
    grants_of,
    model_overrides,
    print_json,
)
from echo_cli.errors import EchoError
from echo_cli.terminal import put


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder.", metavar="DIR")],
    checkpoint: Annotated[
        str | None,
        typer.Option(help="best (default; without a best step, latest), latest or a step.", metavar="NAME|N"),
    ] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge a LoRA adapter into its base.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    allow_environment: AllowEnvironment = False,
    plain_http: PlainHttp = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint's model and tokenizer to a folder.

    A Hugging Face model or adapter is written in the format that `from_pretrained` loads. The adapter of a run at a
    Tinker service is fetched from there.
    """
    which = chosen_checkpoint(checkpoint, run)

    from echo_cli.runs.export import export_checkpoint

    words = as_overrides([], **model_overrides(trust_remote_code, fetch_model))
    if words and not merge:
        raise EchoError(
            f"{'--trust-remote-code' if trust_remote_code else '--fetch-model'} has no effect without --merge",
            "omit it: a checkpoint is copied as it is",
        )
    consent = consent_of("export", grants_of(None, plain_http, fetch_model), allowed=allow_environment)
    written = export_checkpoint(run, which, output, merge=merge, overrides=words, consent=consent)
    if as_json:
        files = list(written.files)
        print_json({"output": str(written.folder), "kind": written.kind, "step": written.step, "files": files})
    else:
        what = {"model": "the model", "adapter": "the adapter", "merged": "base and adapter as one model"}[written.kind]
        put(f"{written.folder}: {what}, step {written.step}")
