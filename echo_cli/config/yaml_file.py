"""YAML as values of JSON's types, with the line of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from echo_cli.errors import EchoError

_JSON_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_NOT_OURS = (":float", ":bool", ":timestamp", ":merge", ":value")


class _Loader(yaml.SafeLoader):
    """Safe YAML of JSON's types, in which, as in YAML 1.2, 1e-5 is a number and `on` a word; a date is text."""

    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag in {*_JSON_TYPES, None}
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(_NOT_OURS)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # may be endless, or a billion laughs
            raise yaml.YAMLError("aliases (*) are not supported")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def parse_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """Return a YAML document as nodes, which know their lines, and as values; None and None where it is empty.

    Raises:
        YAMLError: it is not YAML, or not of JSON's types.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    except (ValueError, RecursionError) as error:  # `!!int x`, ten thousand brackets
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path, noun: str, tip: str) -> tuple[yaml.Node | None, Any]:
    """Read a YAML file as `parse_yaml` reads a text.

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
        return parse_yaml(text)
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
    """Yield every key below `node` and every entry of its lists (by number, from 0), with its line in the file.

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
