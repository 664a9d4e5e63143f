"""Loading of a run's config from a YAML file and overrides; errors name the key, the file and the line.

Layers, in increasing precedence: defaults, the file's preset, the file's keys, the command line's preset, the command
line's keys. The command line's preset replaces the file's. A file whose keys contradict its preset is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from echo_cli.config.environment import PRESETS as ENVIRONMENT_PRESETS
from echo_cli.config.environment import SOURCES
from echo_cli.config.episodes.several import NamedEnvironment, as_single, by_name, in_environment, named_entries
from echo_cli.config.mcp import MCP_PRESETS
from echo_cli.config.overrides import Override, apply_overrides
from echo_cli.config.presets import PRESETS, preset_conflicts
from echo_cli.config.schema import Config, key_paths
from echo_cli.config.section import is_secret, secret_in
from echo_cli.config.tips import config_tip, key_tip, value_tip, word_tip
from echo_cli.config.yaml_file import key_lines, parse_yaml, read_yaml
from echo_cli.errors import EchoError

_MAY_HOLD_SECRET = (
    ("environment", "headers"),
    *(("environment", "provider", key) for key in ("env", "options", "command")),
    *(("environment", "reward", key) for key in ("env", "command", "rubric")),
    *(("environment", "mcp", key) for key in ("env", "headers", "command")),
    ("sampler", "headers"),
)
"""Key paths of values that may hold a secret, by mistake, where `${NAME}` should stand."""


def parse_override(word: str) -> Override:
    """Parse `key.path=value`, where the value is YAML.

    Raises:
        EchoError: the word has no `=` or no key, or the value is not YAML.
    """
    key, equals, value = word.partition("=")
    keys = tuple(key.split("."))
    if not equals or not all(keys):
        raise EchoError(f"'{word}' is not an override", word_tip(word, shipped_configs(), key_paths()))
    text = f"{key}=…" if may_hold_secret(keys) or is_secret(key, value) else word
    try:
        parsed = parse_yaml(value)[1]
        return Override(keys, parsed, f"{key}=…" if secret_in(key, parsed) else text)
    except yaml.YAMLError:
        raise EchoError(f"the value of '{text}' is not valid YAML", "quote it for the shell: 'key=[1, 2]'") from None


def may_hold_secret(keys: tuple[str, ...]) -> bool:
    """Return whether the value of `keys` may contain a secret, and must not be shown in a message."""
    keys = as_single(keys)
    return any(keys[: len(place)] == place[: len(keys)] for place in _MAY_HOLD_SECRET)


Keys = tuple[str, ...]

COMMANDED = ("trust_remote_code", "fetch")
"""Keys of `model` that only the command line sets: a file may come from elsewhere, and must not run or fetch code."""


def configs_folder() -> Path:
    """Return the folder of the shipped configs: inside the installed package, or next to it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name_or_file: str) -> Path:
    """Return the path of a config file, given the argument of `--config`: the name of a shipped config, or a path.

    Raises:
        EchoError: the config does not exist, and the tip suggests the nearest name or lists the shipped configs; or it
            is stdin or a pipe, which can be read only once.
    """
    path = Path(name_or_file)
    if name_or_file == "-" or (path.exists() and not path.is_file() and not path.is_dir()):
        what = "stdin" if name_or_file == "-" else f"a pipe, {name_or_file}"
        raise EchoError(f"cannot read a config from {what}", "save it to a file first: … > my.yaml; --config my.yaml")
    tip = config_tip(name_or_file, shipped_configs(), ENVIRONMENT_PRESETS)
    if path.suffix in (".yaml", ".yml") or "/" in name_or_file:
        if not path.is_file():
            raise EchoError(f"config file {name_or_file} does not exist", tip)
        if path.parent.resolve() == (configs_folder() / "environments").resolve():
            raise EchoError(f"{name_or_file} is the preset of an environment, not a config", tip)
        return path
    if name_or_file not in shipped_configs():
        raise EchoError(f"no config named '{name_or_file}'", tip)
    return configs_folder() / f"{name_or_file}.yaml"


def load_config(source: Path | str, overrides: Sequence[str] = (), *, text: str | None = None) -> Config:
    """Load a config from a YAML file and apply overrides to it.

    Args:
        source: path of the file, or name of a shipped config, such as "toy".
        overrides: words as on the command line, `key.path=value`, such as "optim.lr=1e-3".
        text: content of the file, if it was read before.

    Raises:
        EchoError: the file cannot be read or is not a mapping; a key is unknown or duplicate; a value has the wrong
            type or is out of range. The message is one line with the key, and the file and line or "command line".
    """
    path = find_config(source) if isinstance(source, str) else source
    in_file, lines = _read_config(path, text)
    given = [parse_override(word) for word in overrides]
    _check_file_preset(in_file, given, lines.get(("preset",), str(path)))
    listed = [in_file.get("environments"), *(other.value for other in given if other.keys == ("environments",))][-1]
    lines |= {by_name(keys, listed): line for keys, line in lines.items()}
    commanded: dict[Keys, str] = {}
    for override in given:
        sections = {override.keys[:length] for length in range(1, len(override.keys))} - set(lines)
        commanded |= dict.fromkeys([*sections, override.keys], f"command line: {override.text}")

    def place(keys: Keys) -> str:
        """Return the origin of a key's value, or of the nearest enclosing section that was given."""
        for places in (commanded, lines):
            for length in range(len(keys), 0, -1):
                if keys[:length] in places:
                    return places[keys[:length]]
        return str(path)

    try:
        return _resolve(in_file, given)
    except ValidationError as error:
        raise _first_error(error, place, listed) from None
    except EchoError as error:
        words = [override.text for override in _to_blame(in_file, given, error)]
        where = " ".join(["command line:", *words, "on", str(path)]) if words else str(path)
        raise EchoError(f"{error.message} ({where})", error.tip) from None


def _resolve(in_file: Mapping[str, Any], given: Sequence[Override]) -> Config:
    """Return the config of all layers; of the file's keys, those in `COMMANDED` have no effect.

    Raises:
        ValidationError: a key is unknown or a value has the wrong type.
        EchoError: a value is out of range or does not fit another; the message names no place.
    """
    values = _with_preset(in_file, given)
    if isinstance(values.get("model"), dict):
        values["model"] = {key: value for key, value in values["model"].items() if key not in COMMANDED}
    for override in given:
        if as_single(override.keys) == ("environment", "preset"):
            _merge(values, _caps([override.value]))
    apply_overrides(values, given)
    _apply_environment_presets(values)
    _default_source(values)
    for name, entry in named_entries(values).items():
        with in_environment(name), suppress(ValidationError):  # the whole config's error has the place of the key
            NamedEnvironment.model_validate_json(json.dumps(entry), strict=True)
    return _without_broken_preset(Config.model_validate_json(json.dumps(values), strict=True))


def _to_blame(in_file: Mapping[str, Any], given: Sequence[Override], error: EchoError) -> list[Override]:
    """Return the overrides without each of which the error would not occur.

    If none of them alone decides, the result is empty if the file is wrong by itself, and all overrides otherwise.
    """

    def occurs(overrides: Sequence[Override]) -> bool:
        try:
            _resolve(in_file, overrides)
        except EchoError as other:
            return other.message == error.message
        except ValidationError:
            pass
        return False

    blamed = [one for one in given if not occurs([other for other in given if other is not one])]
    return blamed or ([] if occurs([]) else list(given))


def environment_preset(name: str) -> dict[str, Any]:
    """Return the keys of a shipped preset: the action and observation mappings of the environment `name`."""
    keys = _preset_file(name)
    keys.pop("rollout", None)
    return keys


def _preset_file(name: str) -> dict[str, Any]:
    """Return the keys of a preset's file; the preset of an MCP server is read on top of the one of all of them."""
    keys = _read_config(configs_folder() / "environments" / f"{name}.yaml")[0]
    if name not in MCP_PRESETS[1:]:
        return keys
    merged = _preset_file(MCP_PRESETS[0])
    _merge(merged, keys)
    return merged


def _caps(names: Iterable[Any]) -> dict[str, Any]:
    """Return the caps on lengths that presets of environments set, below `rollout`: the highest of each.

    There are none without a preset.
    """
    presets = [name for name in names if isinstance(name, str) and name in ENVIRONMENT_PRESETS]
    caps: dict[str, Any] = {}
    for name in presets:
        for key, value in _preset_file(name).get("rollout", {}).items():
            caps[key] = max(value, caps.get(key, value))
    return {"rollout": caps} if caps else {}


def _read_config(path: Path, text: str | None = None) -> tuple[dict[str, Any], dict[Keys, str]]:
    """Return the values of a file, and the location `file:line` of each key path."""
    node, values = read_yaml(path, "config", "pass a YAML file to --config", text)
    if node is None:
        raise EchoError(f"config {path} is empty", f"start from a shipped config: {configs_folder() / 'toy.yaml'}")
    if not isinstance(node, yaml.MappingNode):
        raise EchoError(f"config {path} is not a mapping of keys", "write lines like 'seed: 0'")
    return values, {keys: f"{path}:{line}" for keys, line in key_lines(node, path)}


def _check_file_preset(in_file: Mapping[str, Any], given: Sequence[Override], place: str) -> None:
    """Check that the file's keys do not contradict its preset, unless the command line replaces the preset.

    Raises:
        EchoError: they do; the message names the keys.
    """
    name = in_file.get("preset")
    if not (isinstance(name, str) and name in PRESETS) or any(override.keys == ("preset",) for override in given):
        return
    if conflicts := preset_conflicts(name, in_file):
        raise EchoError(
            f"preset '{name}' contradicts keys of the same file: {', '.join(conflicts)} ({place})",
            f"delete these keys, or write preset={name} on the command line, which overrides the file",
        )


def _with_preset(in_file: Mapping[str, Any], given: Sequence[Override]) -> dict[str, Any]:
    """Return the file's values and the preset's: below them if the file names it, above if the command line does."""
    values: dict[str, Any] = {}
    commanded = [override.value for override in given if override.keys == ("preset",)]
    name = commanded[-1] if commanded else in_file.get("preset")
    layers: list[Mapping[str, Any]] = [in_file]
    if isinstance(name, str) and name in PRESETS:
        layers.insert(1 if commanded else 0, PRESETS[name].sections)
    for layer in layers:
        _merge(values, layer)
    return values


def _without_broken_preset(config: Config) -> Config:
    """Return the config without its preset if the command line has changed a key that the preset sets.

    A run's config would otherwise name a source whose settings it does not have.
    """
    if config.preset is None or not preset_conflicts(config.preset, config.model_dump(mode="json")):
        return config
    return config.model_copy(update={"preset": None})


def _apply_environment_presets(values: dict[str, Any]) -> None:
    """Merge the preset named in each environment section below the section's own keys, and their caps."""
    names = []
    if isinstance(environment := values.get("environment"), dict):
        values["environment"] = _with_environment_preset(environment)
        names.append(values["environment"].get("preset"))
    if isinstance(listed := values.get("environments"), list):
        values["environments"] = [_with_environment_preset(of) if isinstance(of, dict) else of for of in listed]
        names += [of.get("preset") for of in values["environments"] if isinstance(of, dict)]
    caps = _caps(names)
    if caps and isinstance(values.get("rollout", {}), dict):
        _merge(caps, {"rollout": values.get("rollout", {})})
        values |= caps


def _with_environment_preset(environment: dict[str, Any]) -> dict[str, Any]:
    """Return an environment section on top of the preset that it names, or that its source has by default."""
    tasks = environment.get("tasks")
    if isinstance(tasks, dict) and tasks.get("toy_terminal") is not None:
        environment.setdefault("preset", "toy_terminal")
    if environment.get("terminal") is not None:
        environment.setdefault("preset", "terminal")
    if environment.get("mcp") is not None and environment.get("preset") is None:
        environment["preset"] = MCP_PRESETS[0]
    name = environment.get("preset")
    if not isinstance(name, str) or name not in ENVIRONMENT_PRESETS:
        return environment
    preset = environment_preset(name)
    action, own = environment.get("action"), environment.get("mcp")
    if isinstance(action, dict) and "kind" in action and action["kind"] != preset.get("action", {}).get("kind"):
        preset.pop("action", None)
    if isinstance(own, dict) and own.get("url") is not None:  # the preset's server, which runs elsewhere
        preset["mcp"] = {key: value for key, value in preset.get("mcp", {}).items() if key not in ("command", "env")}
    _merge(preset, environment)
    return preset


def _default_source(values: dict[str, Any]) -> None:
    """Set the toy terminal as the source of environments if no source is given."""
    environment = values.setdefault("environment", {})
    if isinstance(environment, dict) and all(environment.get(source) is None for source in SOURCES):
        environment["toy_terminal"] = {}


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _merge(values[key], value)
        else:
            values[key] = deepcopy(value)


def _first_error(error: ValidationError, place: Callable[[Keys], str], listed: Any) -> EchoError:
    """Return the first error as one line; `listed` is the value of `environments`, whose entries it names."""
    details = error.errors()[0]
    numbered = tuple(str(part) for part in details["loc"])
    keys = by_name(numbered, listed)
    name, known = ".".join(keys), re.sub(r"\.\d+", ".0", ".".join(numbered))
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        message = f"unknown key '{name}'"
        tip = key_tip(known, key_paths())
    elif details["type"] == "missing":
        message, tip = f"'{name}' is missing", "add it"
    elif "headers" in keys[1:3]:
        message, tip = f"'{name}' does not refer to an environment variable", "write ${NAME}, and export NAME=…"
    else:
        got = details["input"]
        is_hidden = is_secret(name, str(got)) or (len(keys) > 1 and may_hold_secret(keys))
        shown = "not valid" if is_hidden else _shown(got)
        message = f"'{name}' is {shown}: {details['msg'][0].lower()}{details['msg'][1:]}"
        tip = value_tip(known, details, key_paths())
    return EchoError(f"{message} ({place(keys)})", tip.replace("environments.0", ".".join(keys[:2])))


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


def shipped_configs() -> list[str]:
    """Return the names of the shipped configs, sorted."""
    return sorted(path.stem for path in configs_folder().glob("*.yaml"))
