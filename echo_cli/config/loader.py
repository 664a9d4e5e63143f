"""The config of a run from a YAML file and overrides, with errors that name the key, the file and the line.

Layers, later ones win: defaults, presets, the file's keys, the command line's preset and then its keys.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from echo_cli.config.environment import PRESETS as ENVIRONMENT_PRESETS
from echo_cli.config.environment import SOURCE_KEYS, SOURCES, TASK_SOURCES
from echo_cli.config.objective import PRESETS
from echo_cli.config.schema import Config, key_paths
from echo_cli.config.yaml_file import key_lines, parse_yaml, read_yaml
from echo_cli.errors import EchoError


@dataclass(frozen=True)
class Override:
    """A value for one key path."""

    keys: tuple[str, ...]
    value: Any
    text: str
    """The override as it was given, for messages; without its value where that may hold a secret."""


def parse_override(word: str) -> Override:
    """Read `key.path=value`, whose value is YAML.

    Raises:
        EchoError: the word has no `=` or no key, or its value is not YAML.
    """
    key, equals, value = word.partition("=")
    keys = tuple(key.split("."))
    if not equals or not all(keys):
        raise EchoError(f"'{word}' is not an override", "write key.path=value, for example optim.lr=1e-3")
    text = f"{key}=…" if may_hold_headers(keys) else word
    try:
        return Override(keys, parse_yaml(value)[1], text)
    except yaml.YAMLError:
        raise EchoError(f"the value of '{text}' is not YAML", "quote it for the shell: 'key=[1, 2]'") from None


def may_hold_headers(keys: tuple[str, ...]) -> bool:
    """Return whether a value under `keys` may be or hold a header: a secret, where a variable's name was meant."""
    return keys[0] in ("environment", "sampler") and keys[1:2] in ((), ("headers",))


def apply_overrides(values: dict[str, Any], overrides: Sequence[Override]) -> None:
    """Set the overrides in `values`, in order; another source of environments or tasks takes the place of the former.

    Raises:
        EchoError: a key path goes on below a value.
    """
    given = {override.keys[:2] for override in overrides}
    for override in overrides:
        _replace_source(values, override, given)
        _replace_tasks(values, override)
        _set(values, override)


def _replace_source(values: dict[str, Any], override: Override, given: Set[tuple[str, ...]]) -> None:
    """Where the override names another source of environments, take out the one before, and the keys of that source.

    The tasks of the toy terminal stay: `environment.url=…` alone plays the same worlds on a server.

    Args:
        given: the first two keys of every override; what these set stays.
    """
    environment = values.setdefault("environment", {})
    section, source = (*override.keys, "")[:2]
    if section != "environment" or source not in SOURCES or not isinstance(environment, dict):
        return
    if override.value is None or environment.get(source) is not None:
        return
    if source == "none":  # what the file says of an environment goes with it
        for key in [key for key in environment if ("environment", key) not in given]:
            del environment[key]
        return
    for key, takers in SOURCE_KEYS.items():
        if source not in takers and ("environment", key) not in given:
            environment.pop(key, None)
    for former in SOURCES:
        worlds = environment.pop(former, None)
        if former == "toy_terminal" and source != former and environment.get("tasks") is None:
            environment["tasks"] = {"toy_terminal": worlds or {}}


def _replace_tasks(values: dict[str, Any], override: Override) -> None:
    """Where the override names another source of tasks, take out the one before."""
    environment = values.get("environment")
    tasks = environment.get("tasks") if isinstance(environment, dict) else None
    source = override.keys[2] if override.keys[:2] == ("environment", "tasks") and len(override.keys) > 2 else None
    if isinstance(tasks, dict) and source in TASK_SOURCES and override.value is not None:
        for former in set(TASK_SOURCES) - {source}:
            tasks.pop(former, None)


def _set(values: dict[str, Any], override: Override) -> None:
    *sections, last = override.keys
    for depth, key in enumerate(sections):
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            path = ".".join(override.keys[: depth + 1])
            raise EchoError(f"'{path}' is a value, not a section", "drop the rest of the path")
        values = inner
    values[last] = override.value


Keys = tuple[str, ...]


def configs_folder() -> Path:
    """Return the folder of the shipped configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name_or_file: str) -> Path:
    """Return the file of a config that is named as `--config` names it: a shipped config or a path.

    Raises:
        EchoError: there is neither; the tip suggests the nearest name.
    """
    path = Path(name_or_file)
    if path.suffix in (".yaml", ".yml") or "/" in name_or_file:
        if not path.is_file():
            raise EchoError(f"no config file {name_or_file}", f"shipped configs: {', '.join(_shipped())}")
        return path
    if name_or_file not in _shipped():
        raise EchoError(f"no config named '{name_or_file}'", _suggest(name_or_file, _shipped(), "shipped configs"))
    return configs_folder() / f"{name_or_file}.yaml"


def load_config(source: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Load a config: the keys of a YAML file, with overrides on top.

    Args:
        source: the file's path, or the name of a shipped config, such as "toy".
        overrides: words as on the command line, `key.path=value`, such as "optim.lr=1e-3".

    Raises:
        EchoError: the file cannot be read or is not a mapping; a key is unknown or given twice; a value has the wrong
            type or is out of range. One line, naming the key and the file's line or the command line.
    """
    path = find_config(source) if isinstance(source, str) else source
    in_file, lines = _read_config(path)
    given = [parse_override(word) for word in overrides]
    values: dict[str, Any] = {}
    _apply_preset(values, in_file.get("preset"))
    _merge(values, in_file)
    _apply_preset(values, next((override.value for override in reversed(given) if override.keys == ("preset",)), None))
    apply_overrides(values, given)
    _apply_environment_preset(values)
    _default_source(values)
    commanded = {override.keys: f"command line: {override.text}" for override in given}

    def place(keys: Keys) -> str:
        """Return where a value comes from: the nearest of it and of the sections around it that was given."""
        for places in (commanded, lines):
            for length in range(len(keys), 0, -1):
                if keys[:length] in places:
                    return places[keys[:length]]
        return str(path)

    try:
        return Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise _first_error(error, place) from None
    except EchoError as error:
        words = [override.text for override in given]
        where = " ".join(["command line:", *words, "on", str(path)]) if words else str(path)
        raise EchoError(f"{error.message} ({where})", error.tip) from None


def environment_preset(name: str) -> dict[str, Any]:
    """Return the keys of a shipped preset: how the environment `name` takes actions and where its text is."""
    return _read_config(configs_folder() / "environments" / f"{name}.yaml")[0]


def _read_config(path: Path) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Read the values of a file, and by key path where each stands, `file:line`."""
    node, values = read_yaml(path, "config", "give --config a YAML file")
    if node is None:
        raise EchoError(f"config {path} is empty", f"start from a shipped one: {configs_folder() / 'toy.yaml'}")
    if not isinstance(node, yaml.MappingNode):
        raise EchoError(f"config {path} is not a mapping of keys", "write lines like 'seed: 0'")
    return values, {keys: f"{path}:{line}" for keys, line in key_lines(node, path)}


def _apply_preset(values: dict[str, Any], name: Any) -> None:
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is not None:
        _merge(values, {"objective": dict(preset.objective), "optim": dict(preset.optim)})


def _apply_environment_preset(values: dict[str, Any]) -> None:
    """Put the preset that the environment section names under the section's own keys."""
    environment = values.get("environment")
    if not isinstance(environment, dict):
        return
    tasks = environment.get("tasks")
    if isinstance(tasks, dict) and tasks.get("toy_terminal") is not None:
        environment.setdefault("preset", "toy_terminal")
    name = environment.get("preset")
    if isinstance(name, str) and name in ENVIRONMENT_PRESETS:
        preset = environment_preset(name)
        _merge(preset, environment)
        values["environment"] = preset


def _default_source(values: dict[str, Any]) -> None:
    """Set the toy terminal as the source of environments where none is named."""
    environment = values.setdefault("environment", {})
    if isinstance(environment, dict) and all(environment.get(source) is None for source in SOURCES):
        environment["toy_terminal"] = {}


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, dict) else value


def _first_error(error: ValidationError, place: Callable[[Keys], str]) -> EchoError:
    details = error.errors()[0]
    keys = tuple(str(part) for part in details["loc"])
    name = ".".join(keys)
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message = f"unknown key '{name}'"
        tip = _suggest(re.sub(r"\.\d+", ".0", name), key_paths(), "top-level keys")
    elif details["type"] == "missing":
        message, tip = f"'{name}' is missing", "add it"
    elif len(keys) > 1 and may_hold_headers(keys):
        message, tip = f"'{name}' is no text that names an environment variable", "write ${NAME}, and export NAME=…"
    else:
        got = details["input"]
        message = f"'{name}' is {_shown(got)}: {details['msg'][0].lower()}{details['msg'][1:]}"
        tip = _type_tip(got, details["type"])
    return EchoError(f"{message} ({place(keys)})", tip)


def _type_tip(got: Any, kind: str) -> str:
    if isinstance(got, str) and kind in ("float_type", "int_type"):
        return "write the number without quotes" if _is_number(got) else "a number is expected here"
    if isinstance(got, float) and kind == "int_type":
        return "write a whole number, without a point or an exponent"
    if kind in ("model_type", "dataclass_type", "dict_type"):
        return "this is a section: put its keys below it, indented"
    return "every key is explained in the shipped configs; --dry-run prints the resolved one"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def _shipped() -> list[str]:
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))


def _suggest(name: str, known: Sequence[str], label: str) -> str:
    """Return a did-you-mean: the same last word elsewhere first (a misplaced key), else the nearest spelling."""
    misplaced = [path for path in known if path.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    nearest = misplaced or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean '{nearest[0]}'?"
    return f"{label}: {', '.join(path for path in known if '.' not in path)}"
