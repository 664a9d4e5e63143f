"""Arms of a sweep, which it compares: values of λ, and names with overrides; how a command line states them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from echo_cli.config.loader import shipped_configs
from echo_cli.errors import EchoError
from echo_cli.files import read_json, write_json
from echo_cli.text import escape_unprintable

COEFF = "objective.world_model_coeff"

_ARM = "--arm"
_ARM_TIP = "write: --arm NAME KEY=VALUE ..., such as --arm grpo objective.world_model_coeff=0"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,23}")
_OF_THE_SWEEP = {
    "seed": "every arm has the same seeds, since arms are compared by seed: list them after --seeds",
    "output_dir": "all arms are in one folder: set it with --output-dir",
    "run_name": "all arms are in one folder: set it with --run-name",
}
"""Keys that an arm cannot set, with a tip."""


@dataclass(frozen=True)
class Arm:
    """One setting that a sweep trains with every seed: a value of λ, or a named arm."""

    label: str
    """λ, or the arm's name; the first column of tables."""
    words: tuple[str, ...]
    """Overrides of the sweep's config, `key.path=value`."""
    named: bool = False

    @property
    def title(self) -> str:
        """Label in sentences and figures, such as `λ = 0.05`."""
        return self.label if self.named else f"λ = {self.label}"

    @property
    def stem(self) -> str:
        """Start of the names of its runs' folders."""
        return f"arm-{self.label}" if self.named else f"lambda-{self.label}"


def lambda_arm(coeff: float) -> Arm:
    return Arm(shown_coeff(coeff), (f"{COEFF}={coeff!r}",))


def column_of(arms: Iterable[Arm]) -> str:
    """Return the title of the column that tells `arms` apart."""
    return "arm" if any(arm.named for arm in arms) else "λ"


def row_label(arm: Arm, column: str) -> str:
    """Return the entry of an arm in a column of `column_of`: among names, λ has its sign."""
    return arm.label if column == "λ" else arm.title


def baseline_of(arms: Sequence[Arm]) -> Arm | None:
    """Return the arm that the others are compared with: λ = 0, else the first named arm; None without either."""
    zero = [arm for arm in arms if not arm.named and arm.label == "0"]
    return next(iter([*zero, *(arm for arm in arms if arm.named)]), None)


def parse_sweep(words: Sequence[str], named: Sequence[str]) -> tuple[list[Arm], list[str]]:
    """Return the arms of a sweep, λ values first, and the overrides of every arm.

    Args:
        words: λ values and overrides.
        named: values of `--arm`, as `join_arms` makes them.

    Raises:
        EchoError: as `parse_words` and `parse_arms`.
    """
    arms = parse_arms(named)
    coeffs, overrides = parse_words(words, named=bool(arms))
    return [*map(lambda_arm, coeffs), *arms], overrides


def parse_words(words: Sequence[str], *, named: bool = False) -> tuple[list[float], list[str]]:
    """Return the λ values and the `key.path=value` overrides; overrides contain `=`.

    Args:
        named: whether the sweep has named arms, so that it needs no λ.

    Raises:
        EchoError: there is no value, a word is neither, λ is overridden, or two values are equal or would share a
            folder.
    """
    overrides = [word for word in words if "=" in word]
    coeffs = [parse_coeff(word) for word in words if "=" not in word]
    if not coeffs and not named:
        raise EchoError("no λ values", "give at least one: echo-cli sweep-lambda 0 0.005 0.05")
    if coeffs and any(word.partition("=")[0] == COEFF for word in overrides):
        raise EchoError(f"a sweep sets {COEFF} itself", "give λ values as words: 0 0.005 0.05")
    for first, second in itertools.pairwise(sorted(coeffs)):
        if first == second:
            raise EchoError(f"λ {shown_coeff(first)} is given twice", "give every value once")
        if shown_coeff(first) == shown_coeff(second):
            raise EchoError(f"λ {first!r} and {second!r} are the same to 12 digits", "give one of them")
    return coeffs, overrides


def parse_coeff(word: str) -> float:
    """Parse a λ value from the command line.

    Raises:
        EchoError: the value is not a number, not finite or negative.
    """
    try:
        coeff = float(word)
    except ValueError:
        raise EchoError(f"'{word}' is not a λ value", _coeff_tip(word)) from None
    if not 0 <= coeff < float("inf"):
        raise EchoError(f"λ is {word}", "set λ to a finite number, 0 or more; 0 is plain GRPO")
    return coeff + 0.0  # turns -0.0 into 0.0


def _coeff_tip(word: str) -> str:
    values = word.split(",")
    if len(values) > 1 and all(values):
        point = f"; a decimal point is a point: {'.'.join(values)}" if re.fullmatch(r"\d+,\d+", word) else ""
        return f"separate values with spaces: echo-cli sweep-lambda {' '.join(values)}{point}"
    return f"did you mean --config {word}?" if word in shipped_configs() else "give a number, such as 0.05"


def join_arms(words: Sequence[str]) -> list[str]:
    """Join each `--arm`, its name and the overrides that follow, up to a word without `=`, into one word.

    A command-line parser assigns one word to an option, and would read the overrides as overrides of every arm. The
    option's value is a JSON list, so that any text passes through the parser.
    """
    joined: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, name = word.partition("=")
        if option != _ARM:
            joined.append(word)
            continue
        own = [name] if equals else []
        if not equals and rest and not rest[0].startswith("-"):
            own.append(rest.pop(0))
        while rest and "=" in rest[0] and not rest[0].startswith("-"):
            own.append(rest.pop(0))
        joined.append(f"{_ARM}={json.dumps(own)}")
    return joined


def parse_arms(values: Sequence[str]) -> list[Arm]:
    """Return the arms of the values that `join_arms` makes.

    Raises:
        EchoError: an arm has no name, a name that cannot be a folder's or another arm's, or a key of the whole sweep.
    """
    arms: list[Arm] = []
    for value in values:
        name, *words = json.loads(value) or [""]
        if not _NAME.fullmatch(name):
            shown = f"'{escape_unprintable(name)}' is not the name of an arm" if name else f"{_ARM} has no name"
            rule = "a name is a letter and at most 23 letters, digits, dots, +, - or _"
            raise EchoError(shown, f"{rule}; {_ARM_TIP}" if name and "=" not in name else _ARM_TIP)
        if any(arm.label.lower() == name.lower() for arm in arms):
            raise EchoError(f"arm {name} is given twice", "give every arm a name of its own")
        for word in words:
            key = word.partition("=")[0]
            if key in _OF_THE_SWEEP:
                raise EchoError(f"arm {name} sets {key}", _OF_THE_SWEEP[key])
        arms.append(Arm(name, tuple(words), named=True))
    return arms


def read_arms(folder: Path) -> dict[str, Arm]:
    """Return the named arms that sweeps in `folder` have trained, by label.

    Raises:
        EchoError: the record of the arms is damaged.
    """
    path = _record(folder)
    if not path.is_file():
        return {}
    arms = {}
    for label, words in read_json(path).items():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise EchoError(f"{escape_unprintable(path)} is damaged", "give the sweep another --run-name")
        arms[label] = Arm(label, tuple(words), named=True)
    return arms


def record_arms(folder: Path, arms: Sequence[Arm]) -> None:
    """Add the named arms to the record of `folder`, so that a later sweep can tell what their runs were trained with.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    recorded: Mapping[str, Arm] = read_arms(folder) | {arm.label: arm for arm in arms if arm.named}
    if recorded:
        _record(folder).parent.mkdir(parents=True, exist_ok=True)
        write_json(_record(folder), {label: list(arm.words) for label, arm in recorded.items()})


def shown_coeff(coeff: float) -> str:
    return f"{coeff:.12g}"


def _record(folder: Path) -> Path:
    return folder / "cells" / "arms.json"
