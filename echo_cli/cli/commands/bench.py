"""`echo-cli bench`."""

from __future__ import annotations

from typing import Annotated

import typer

from echo_cli.cli.options import (
    AsJson,
    ConfigName,
    Device,
    FetchModel,
    ImportFrom,
    Overrides,
    PlainHttp,
    TrustRemoteCode,
    as_overrides,
    consent_of,
    fetching_named,
    grants_of,
    model_overrides,
    print_json,
)
from echo_cli.config.effects import effects_of
from echo_cli.config.loader import find_config, load_config
from echo_cli.terminal import put


def bench(
    overrides: Overrides = None,
    config: ConfigName = None,
    repeats: Annotated[int, typer.Option(help="Number of timed repeats after a warm-up.", metavar="N", min=1)] = 15,
    device: Device = None,
    import_from: ImportFrom = None,
    plain_http: PlainHttp = False,
    trust_remote_code: TrustRemoteCode = False,
    fetch_model: FetchModel = False,
    as_json: AsJson = False,
) -> None:
    """Measure the cost of the env term in seconds and memory.

    Compares λ = 0, λ > 0 and a second pass on the same rollouts. Nothing is trained or written.
    """
    from echo_cli.training import benchmark as measure

    grants = grants_of(import_from, plain_http, fetch_model)
    given = overrides or []
    options = model_overrides(trust_remote_code, fetch_model)
    words = [*given, *as_overrides(given, device=device, **options)]
    loaded = fetching_named(load_config(find_config("toy" if config is None else config), words)).granted(grants)
    consent_of("bench", grants).obtain(effects_of(loaded))
    result = measure.bench(loaded, repeats, lambda text: put(f"bench: {text}", err=True))
    if as_json:
        print_json(result)
    else:
        from echo_cli.cli.display.results import print_bench

        print_bench(result)
