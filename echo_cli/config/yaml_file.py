"""Reading of YAML as values of JSON types, with the line number of every key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from echo_cli.errors import EchoError
from echo_cli.files import read_text

_JSON_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_NOT_OURS = (":float", ":bool", ":timestamp", ":merge", ":value")


class _Loader(yaml.SafeLoader):
    """A safe loader for JSON types: as in YAML 1.2, 1e-5 is a number and `on` a string; a date is a string."""

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
        if self.check_event(yaml.AliasEvent):  # aliases allow infinite recursion and exponential expansion
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
    """Return a YAML document as nodes, which hold line numbers, and as values; (None, None) if it is empty.

    Raises:
        YAMLError: the text is not YAML, or has types other than JSON types.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return node, None if node is None else loader.construct_document(node)
    except (ValueError, RecursionError) as error:  # for example `!!int x`, or thousands of nested brackets
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path, noun: str, tip: str, text: str | None = None) -> tuple[yaml.Node | None, Any]:
    """Read a YAML file; see `parse_yaml` for the result.

    Args:
        noun: kind of file, for the error message.
        tip: tip if the file cannot be read.
        text: content of the file, if it was read before.

    Raises:
        EchoError: the file cannot be read or is not YAML. The message has the file and, if known, the line.
    """
    text = read_text(path, noun, tip) if text is None else text
    try:
        return parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise EchoError(f"invalid YAML: {error.problem} ({path}:{line})", "check indentation and colons") from None
    except yaml.YAMLError as error:
        raise EchoError(
            f"invalid YAML: {' '.join(str(error).split())} ({path})", "start from a shipped config"
        ) from None


def key_lines(node: yaml.Node, path: Path, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the path of every key and list entry (by 0-based index) below `node`, with its 1-based line in the file.

    Raises:
        EchoError: a mapping has the same key twice.
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
            raise EchoError(f"duplicate key '{'.'.join(keys)}' ({path}:{line})", "keep one of the two")
        seen.add(keys[-1])
        yield keys, line
        yield from key_lines(value_node, path, keys)
