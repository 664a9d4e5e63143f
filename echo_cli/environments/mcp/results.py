"""Results of tool calls as observations: text, errors, and a note for every part that is left out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from echo_cli.environments.protocol import JsonObject
from echo_cli.trajectory import SCAFFOLD, TOOL_ERROR, VOLATILE

if TYPE_CHECKING:
    from mcp import types

_RESERVED = (SCAFFOLD, TOOL_ERROR, VOLATILE)
"""Channels with a meaning of their own; the outputs of a tool of such a name have the channel `tool_NAME`."""

FIELDS: dict[str, JsonObject] = {
    "channel": {"type": "string"},
    "text": {"type": "array", "items": {"type": "string"}},
    "error": {"type": "array", "items": {"type": "string"}},
    "left_out": {"type": "array", "items": {"type": "string"}},
    "question": {"type": "string"},
    "server_instructions": {"type": "string"},
}
"""Schemas of the fields of an observation; a reset has the last two, and the other arguments of the task."""


def observation_of(name: str, result: types.CallToolResult) -> dict[str, Any]:
    """Return the observation of a call of the tool `name`.

    Its text content is `text`, or `error` if the result is an error; a result with structured content alone is shown
    as JSON. Images, audio and resources are described in `left_out`.
    """
    texts = [part.text for part in result.content if part.type == "text"]
    if not result.content and result.structuredContent is not None:
        texts = [json.dumps(result.structuredContent, ensure_ascii=False)]
    return {
        "channel": f"tool_{name}" if name in _RESERVED else name,
        "error" if result.isError else "text": texts,
        "left_out": [_described(part) for part in result.content if part.type != "text"],
    }


def _described(part: types.ContentBlock) -> str:
    """Return what a part of a result is that has no text: its kind, its media type, its size or its address."""
    if part.type in ("image", "audio"):
        return f"{part.type} {part.mimeType}, {len(part.data):,} characters of base64"
    if part.type == "resource_link":
        return f"link to resource {part.uri}"
    assert part.type == "resource"
    resource = part.resource
    size = f"{len(resource.text):,} characters" if hasattr(resource, "text") else f"{len(resource.blob):,} of base64"
    return f"resource {resource.uri}, {size}"
