"""Tips for what the command line refuses: unknown commands and options, missing words."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from typing import Any

from echo_cli.config.loader import shipped_configs
from echo_cli.config.schema import key_paths
from echo_cli.config.tips import settable_key

_OTHER_COMMANDS = {
    **dict.fromkeys(("sweep", "lambda", "grid"), "sweep-lambda"),
    **dict.fromkeys(("eval", "evaluate", "evaluation", "test", "score", "heldout"), "eval-heldout"),
    **dict.fromkeys(("resume", "continue"), "train --resume"),
    **dict.fromkeys(("fit", "run", "start", "demo"), "train"),
    **dict.fromkeys(("figure", "curve", "draw"), "plot"),
    **dict.fromkeys(("html", "page"), "report"),
    **dict.fromkeys(("show", "view", "episodes"), "inspect"),
    **dict.fromkeys(("save", "merge"), "export"),
    **dict.fromkeys(("benchmark", "time"), "bench"),
    "compare": "eval-heldout --compare RUN_A RUN_B",
    "check": "env check",
    "import": "traces import",
    "help": "--help",
    "version": "--version",
}
"""Command of each word by which other tools call it."""

_OTHER_OPTIONS = {
    **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
    "--cpu": "--device cpu",
    **dict.fromkeys(("--parallel", "--processes", "--workers", "--num-workers"), "--jobs"),
    **dict.fromkeys(("--force", "--replace"), "--overwrite"),
    **dict.fromkeys(("--continue", "--restart"), "--resume"),
    **dict.fromkeys(("--dry", "--plan"), "--dry-run"),
    **dict.fromkeys(("--epochs", "--max-steps", "--num-steps", "--iterations"), "--steps"),
    **dict.fromkeys(("--lr", "--learning-rate"), "optim.lr=…"),
}

_SEVERAL = {
    ("train", "--seeds"): "train takes one --seed; for several: echo-cli sweep-lambda 0 1 --seeds 0 1",
    ("train", "--lambdas"): "train takes one --lambda; for several: echo-cli sweep-lambda 0 1",
    ("train", "--jobs"): "train trains one run; for several: echo-cli sweep-lambda 0 1 --jobs 2",
    ("sweep-lambda", "--resume"): "repeat the command without it: finished runs are kept, stopped runs continue",
    ("sweep-lambda", "--lambda"): "write the values without an option: echo-cli sweep-lambda 0 1",
    ("sweep-lambda", "--lambdas"): "write the values without an option: echo-cli sweep-lambda 0 1",
}


def command_of(root: Any, words: Sequence[str]) -> tuple[Any, list[str], list[str]]:
    """Return the command that `words` name, the words of its name, and the other words."""
    command, name, rest = root, [], list(words)
    while rest and rest[0] in getattr(command, "commands", ()):
        name.append(rest.pop(0))
        command = command.commands[name[-1]]
    return command, name, rest


def usage_tip(root: Any, words: Sequence[str], error: Any) -> str:
    """Return a tip for a usage error of the parser.

    Args:
        root: the parser's command of `echo-cli`.
        words: the command line.
    """
    command, name, rest = command_of(root, words)
    message = error.format_message()
    if message.startswith("No such command") and rest:
        return _command_tip(command, name, rest)
    option = getattr(error, "option_name", None)
    if option and message.startswith("No such option"):
        return option_tip(command, name, option)
    if option and " arguments" in message:  # an option with several values
        metavar = next(parameter.metavar for parameter in command.params if option in parameter.opts)
        return f"write {option} {metavar}"
    if message.startswith("Missing ") and command.epilog:
        return f"{example_of(command)}; see {shlex.join(['echo-cli', *name])} --help"
    return f"see {shlex.join(['echo-cli', *name])} --help"


def example_of(command: Any) -> str:
    """Return the first line of a command's examples."""
    lines: list[str] = command.epilog.replace("\b", "").split("\n")
    return f"for example: {next(line.strip() for line in lines if line.startswith('  '))}"


def _command_tip(group: Any, name: Sequence[str], rest: Sequence[str]) -> str:
    """Return a tip for an unknown command, the first of `rest`, of the group `name`."""
    if not name and rest[0] in _OTHER_COMMANDS:
        return f"did you mean '{_OTHER_COMMANDS[rest[0]]}'?"
    if not name and rest[0] in shipped_configs():
        return f"did you mean 'train --config {rest[0]}'?"
    if near := difflib.get_close_matches(rest[0], group.commands, n=1):
        return f"did you mean '{near[0]}'?"
    if len(group.commands) == 1:
        return f"did you mean '{shlex.join(['echo-cli', *name, *group.commands, *rest])}'?"
    return f"commands{f' of {name[0]}' if name else ''}: {', '.join(group.commands)}"


def option_tip(command: Any, name: Sequence[str], option: str) -> str:
    """Return a tip for an unknown option: the option, or the config key, that it may stand for."""
    option = option.partition("=")[0]
    known = [opt for parameter in command.params if not getattr(parameter, "hidden", False) for opt in parameter.opts]
    known = [opt for opt in known if opt.startswith("--")]
    if option in known:
        return f"write {option} before the first --"
    if name and (name[0], option) in _SEVERAL:
        return _SEVERAL[name[0], option]
    takes_keys = any("KEY.PATH" in (parameter.metavar or "") for parameter in command.params)
    other = _OTHER_OPTIONS.get(option)
    if other and (other.partition(" ")[0] in known or (takes_keys and not other.startswith("--"))):
        return f"did you mean {other}?"
    if near := difflib.get_close_matches(option, known, n=1, cutoff=0.75):
        return f"did you mean {near[0]}?"
    key = settable_key(option.lstrip("-").replace("-", "_"), key_paths()) if takes_keys else None
    if key is not None:
        return f"write {key}=… without --"
    near = difflib.get_close_matches(option, [opt for opt in known if opt != "--help"], n=1)
    if near:
        return f"did you mean {near[0]}?"
    if not name:
        return "write options after a command, such as echo-cli train --steps 60"
    return f"see {shlex.join(['echo-cli', *name])} --help"
