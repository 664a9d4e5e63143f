"""A small MCP server, over stdin and stdout or, with a port as the argument, over streamable HTTP.

The variable SAMPLES_WITHOUT names tools that it does not have, separated by commas.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from pathlib import Path

from mcp.server.fastmcp import Context, FastMCP
from mcp.types import EmbeddedResource, ImageContent, TextContent, TextResourceContents

COLOURS = {"apple": "red", "lime": "green", "plum": "blue"}

server = FastMCP("samples", instructions="Look before you answer.", log_level="CRITICAL", host="127.0.0.1")
calls = 0


@server.tool()
def colour(fruit: str) -> str:
    """Return the colour of a fruit."""
    if fruit not in COLOURS:
        raise ValueError(f"no fruit {fruit}")
    return COLOURS[fruit]


@server.tool()
def add(a: int, b: int = 1) -> str:
    """Add two numbers. The second one is 1 unless it is given, and the sum of both may be of any size. Try it."""
    return str(a + b)


@server.tool()
def read(path: str) -> str:
    """Return a file's path and text."""
    return f"{Path(path).resolve()}: {Path(path).read_text()}"


@server.tool()
def write(path: str, text: str) -> str:
    """Write a file."""
    Path(path).write_text(text)
    return "written"


@server.tool()
def count() -> str:
    """Count the calls of this server."""
    global calls
    calls += 1
    return str(calls)


@server.tool(structured_output=False)
def picture() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Return a text, an image and a resource."""
    image = base64.b64encode(b"12345").decode()
    note = TextResourceContents(uri="note://one", text="a note", mimeType="text/plain")  # type: ignore[arg-type]
    return [
        TextContent(type="text", text="a dot"),
        ImageContent(type="image", data=image, mimeType="image/png"),
        EmbeddedResource(type="resource", resource=note),
    ]


@server.tool(structured_output=False)
def nothing() -> list[TextContent]:
    """Return nothing."""
    return []


@server.tool()
def variable(name: str) -> str:
    """Return an environment variable."""
    return os.environ.get(name, "unset")


@server.tool()
def header(name: str, context: Context) -> str:  # type: ignore[type-arg]
    """Return a header of this request."""
    request = context.request_context.request
    return str(request.headers.get(name, "none"))  # type: ignore[union-attr]


@server.tool()
def hang() -> str:
    """Never return."""
    time.sleep(1000)
    return "late"


@server.tool()
def die(words: str) -> str:
    """End the server."""
    print(words, file=sys.stderr, flush=True)
    os._exit(3)


@server.tool()
def stumble(path: str) -> str:
    """End the server at the first call."""
    if not Path(path).exists():
        Path(path).touch()
        os._exit(3)
    return "stands again"


@server.tool()
def flood(megabytes: int) -> str:
    """Return a long text."""
    return "x" * (megabytes * 2**20)


@server.tool()
def child() -> str:
    """Start a process in a session of its own, and return its id."""
    return str(subprocess.Popen(["sleep", "1000"], start_new_session=True, stdin=-3, stdout=-3, stderr=-3).pid)


def main() -> None:
    for name in filter(None, os.environ.get("SAMPLES_WITHOUT", "").split(",")):
        server.remove_tool(name)
    if len(sys.argv) == 1:
        server.run("stdio")
        return
    server.settings.port = int(sys.argv[1])
    server.settings.stateless_http = False
    server.run("streamable-http")


if __name__ == "__main__":
    main()
