"""`echo-cli traces stats`."""

from __future__ import annotations

from typing import Annotated

import typer

from echo_cli.cli.options import AsJson, Recordings, TrustRemoteCode, print_json, tokenizer_overrides


def stats(
    sources: Recordings,
    config: Annotated[
        str | None,
        typer.Option(
            help="Config of the tokenizer; default: the files' token ids, if they have them.", metavar="NAME|FILE"
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Describe traces before anything is trained on them.

    Prints traces, turns, bytes and tokens by role and channel, bits per byte of a byte 5-gram and of gzip, the longest
    trace, copies and near-copies, and the tools with the languages of their calls.
    """
    words = tokenizer_overrides(config, trust_remote_code)

    from echo_cli.evaluation.data.trace_statistics import statistics_of

    found, tokens = statistics_of(sources, config=config, overrides=words)
    if as_json:
        print_json({"sources": [str(source) for source in sources], "tokens": tokens, **found.to_json()})
        return
    from echo_cli.cli.display.trace_statistics import print_statistics

    print_statistics(found, tokens=tokens)
