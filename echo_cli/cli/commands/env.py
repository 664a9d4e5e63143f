"""`echo-cli env`: check an environment before training."""

from __future__ import annotations

from typing import Annotated

import typer

from echo_cli.cli.options import AsJson, Overrides, command_group, print_json
from echo_cli.config.loader import find_config, load_config

env = command_group("Environments: check one before training.")


@env.command("check")
def check(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Shipped config or YAML file.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Play one episode in a config's environment and report problems.

    The transcript shows the roles as training uses them. Nothing is written.
    """
    loaded = load_config(find_config(config), overrides or [])

    from echo_cli.environments.worlds import open_worlds
    from echo_cli.models.architecture import architecture_of
    from echo_cli.models.loading import load_renderer
    from echo_cli.rollouts.environment_check import check_environment
    from echo_cli.rollouts.limits import limits_of

    renderer, architecture = load_renderer(loaded), architecture_of(loaded.model)
    with open_worlds(loaded) as worlds:
        report = check_environment(
            worlds,
            renderer,
            limits_of(loaded),
            loaded.environment,
            context=None if architecture is None else architecture.max_length,
        )
    if as_json:
        print_json(report.to_json())
    else:
        from echo_cli.cli.display.environment import print_check

        print_check(report)
