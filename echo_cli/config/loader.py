"""Configs as files: YAML plus `key.path=value` overrides, with errors that name the key, the file and the line.

Layers, later ones win: defaults, presets, the file's keys, the command line's preset and then its keys.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from echo_cli.config.environment import PRESETS as ENVIRONMENT_PRESETS
from echo_cli.config.environment import SOURCE_KEYS, SOURCES, TASK_SOURCES
from echo_cli.config.objective import PRESETS
from echo_cli.config.schema import Config, key_paths
from echo_cli.errors import EchoError


def configs_folder() -> Path:
    """Where the shipped configs are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name_or_file: str) -> Path:
    """The file of `--config`: a path, or the name of a shipped config.

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


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file with `key.path=value` overrides on top.

    Raises:
        EchoError: the file cannot be read or is not a mapping; a key is unknown or given twice; a value has the wrong
            type or is out of range. One line, naming the key and the file's line or the command line.
    """
    document = _read_config(path)
    given = [parse_override(word) for word in overrides]
    values: dict[str, Any] = {}
    _apply_preset(values, document.values.get("preset"))
    _merge(values, document.values)
    _apply_preset(values, next((value for keys, value in reversed(given) if keys == ("preset",)), None))
    for keys, value in given:
        _move_source(values, keys, value, {keys[:2] for keys, _ in given})
        _move_tasks(values, keys, value)
        _set(values, keys, value)
    _apply_environment_preset(values)
    _default_source(values)
    words = [_without_secret(keys, word) for (keys, _), word in zip(given, overrides, strict=True)]
    commanded = {keys: word for (keys, _), word in zip(given, words, strict=True)}

    def place(keys: tuple[str, ...]) -> str:
        upwards = [keys[:length] for length in range(len(keys), 0, -1)]
        for above in upwards:
            if above in commanded:
                return f"command line: {commanded[above]}"
        for above in upwards:
            if above in document.lines:
                return f"{path}:{document.lines[above]}"
        return str(path)

    try:
        return Config.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise _first_error(error, place) from None
    except EchoError as error:
        where = " ".join(["command line:", *words, "on", str(path)]) if overrides else str(path)
        raise EchoError(f"{error.message} ({where})", error.tip) from None


def parse_override(word: str) -> tuple[tuple[str, ...], Any]:
    """`key.path=value` as keys and a YAML value.

    Raises:
        EchoError: the word has no `=` or no key, or its value is not YAML.
    """
    key, equals, text = word.partition("=")
    keys = tuple(key.split("."))
    if not equals or not all(keys):
        raise EchoError(f"'{word}' is not an override", "write key.path=value, for example optim.lr=1e-3")
    try:
        return keys, _parse(text)[1]
    except yaml.YAMLError:
        word = _without_secret(keys, word)
        raise EchoError(f"the value of '{word}' is not YAML", "quote it for the shell: 'key=[1, 2]'") from None


def _without_secret(keys: tuple[str, ...], word: str) -> str:
    """An override for a message: headers may hold a secret that should have been a variable's name."""
    return f"{'.'.join(keys)}=…" if keys == ("environment",) or keys[:2] == ("environment", "headers") else word


@dataclass(frozen=True)
class _Document:
    values: dict[str, Any]
    lines: Mapping[tuple[str, ...], int]


class _Loader(yaml.SafeLoader):
    """Safe YAML of JSON's types, in which, as in YAML 1.2, 1e-5 is a number and `on` a word; a date is text."""


_JSON_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_Loader.yaml_constructors = {
    tag: constructor for tag, constructor in yaml.SafeLoader.yaml_constructors.items() if tag in {*_JSON_TYPES, None}
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith((":float", ":bool", ":timestamp", ":merge", ":value"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """A YAML document as nodes, which know their lines, and as values."""
    try:
        for event in yaml.parse(text, _Loader):
            if isinstance(event, yaml.AliasEvent):  # may be endless, or a billion laughs
                raise yaml.YAMLError("aliases (*) are not supported")
        return yaml.compose(text, _Loader), yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # `!!int x`, ten thousand brackets
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path, noun: str, tip: str) -> tuple[yaml.Node | None, Any]:
    """A YAML file as nodes, which know their lines, and as values of JSON's types; None and None where it is empty.

    Args:
        noun: what the file is, for the message where it cannot be read.
        tip: what to do about a file that is not there or not text.

    Raises:
        EchoError: the file cannot be read or is not YAML; names the file and, where it is known, the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EchoError(f"cannot read {noun} {path}: {error}", tip) from None
    try:
        return _parse(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise EchoError(
            f"not valid YAML: {error.problem} ({path}:{line})", "check the indentation and colons"
        ) from None
    except yaml.YAMLError as error:
        raise EchoError(
            f"not valid YAML: {' '.join(str(error).split())} ({path})", "start from a shipped config"
        ) from None


def key_lines(node: yaml.Node, path: Path, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Every key below `node` and every entry of its lists (by number, from 0), with its line in the file at `path`.

    Raises:
        EchoError: a key is given twice.
    """
    if isinstance(node, yaml.SequenceNode):
        for number, entry in enumerate(node.value):
            keys = (*prefix, str(number))
            yield keys, entry.start_mark.line + 1
            yield from key_lines(entry, path, keys)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key_node, value_node in node.value:
        keys, line = (*prefix, str(key_node.value)), key_node.start_mark.line + 1
        if keys[-1] in seen:
            raise EchoError(f"key '{'.'.join(keys)}' is given twice ({path}:{line})", "keep one of the two")
        seen.add(keys[-1])
        yield keys, line
        yield from key_lines(value_node, path, keys)


def _read_config(path: Path) -> _Document:
    node, values = read_yaml(path, "config", "give --config a YAML file")
    if node is None:
        raise EchoError(f"config {path} is empty", f"start from a shipped one: {configs_folder() / 'toy.yaml'}")
    if not isinstance(node, yaml.MappingNode):
        raise EchoError(f"config {path} is not a mapping of keys", "write lines like 'seed: 0'")
    return _Document(values, dict(key_lines(node, path)))


def _apply_preset(values: dict[str, Any], name: Any) -> None:
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is not None:
        _merge(values, {"objective": dict(preset.objective), "optim": dict(preset.optim)})


def _move_source(values: dict[str, Any], keys: tuple[str, ...], value: Any, commanded: Set[tuple[str, ...]]) -> None:
    """Let an override that names another source of environments take the place of the file's, with what belongs to it.

    The toy terminal leaves its tasks: `environment.url=…` alone plays the same worlds on a server.
    """
    environment = values.setdefault("environment", {})
    if len(keys) < 2 or keys[0] != "environment" or keys[1] not in SOURCES or not isinstance(environment, dict):
        return
    if value is None or environment.get(keys[1]) is not None:
        return
    if keys[1] == "none":  # what the file says of an environment goes with it
        for key in [key for key in environment if ("environment", key) not in commanded]:
            del environment[key]
        return
    for key in SOURCE_KEYS:
        if keys[1] not in SOURCE_KEYS[key] and ("environment", key) not in commanded:
            environment.pop(key, None)
    for source in SOURCES:
        worlds = environment.pop(source, None)
        if source == "toy_terminal" and keys[1] != source and environment.get("tasks") is None:
            environment["tasks"] = {"toy_terminal": worlds or {}}


def _move_tasks(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    """Let an override that names another source of tasks take the place of the one before."""
    tasks = (values.get("environment") or {}).get("tasks") if keys[:2] == ("environment", "tasks") else None
    if isinstance(tasks, dict) and len(keys) > 2 and keys[2] in TASK_SOURCES and value is not None:
        for source in set(TASK_SOURCES) - {keys[2]}:
            tasks.pop(source, None)


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
    """Without any other source it is the toy terminal."""
    environment = values.setdefault("environment", {})
    if isinstance(environment, dict) and all(environment.get(source) is None for source in SOURCES):
        environment["toy_terminal"] = {}


def environment_preset(name: str) -> dict[str, Any]:
    """The keys of a shipped preset: how the environment `name` takes actions and where its text is."""
    return _read_config(configs_folder() / "environments" / f"{name}.yaml").values


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = dict(value) if isinstance(value, dict) else value


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = values.setdefault(key, {})
        if inner is None:
            inner = values[key] = {}
        if not isinstance(inner, dict):
            raise EchoError(f"'{'.'.join(keys[: depth + 1])}' is a value, not a section", "drop the rest of the path")
        values = inner
    values[keys[-1]] = value


def _first_error(error: ValidationError, place: Any) -> EchoError:
    details = error.errors()[0]
    keys = tuple(str(part) for part in details["loc"])
    name = ".".join(keys)
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message, tip = (
            f"unknown key '{name}'",
            _suggest(re.sub(r"\.\d+", ".0", name), key_paths(), "top-level keys"),
        )
    elif details["type"] == "missing":
        message, tip = f"'{name}' is missing", "add it"
    elif keys[:2] == ("environment", "headers"):  # the value may be a secret
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
    """A did-you-mean: the same last word elsewhere first (a misplaced key), else the nearest spelling."""
    misplaced = [path for path in known if path.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    nearest = misplaced or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        return f"did you mean '{nearest[0]}'?"
    return f"{label}: {', '.join(path for path in known if '.' not in path)}"
