"""Model folders as a stranger may send them, and a loopback server in place of the hub that records every request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml

from echo_cli.models.hf.random_qwen3 import make_random_qwen3

HUB_NAME = "nobody/nothing"
"""Hub id of a model that no machine has."""

_CODE = """
from pathlib import Path

from transformers import Qwen3Config, Qwen3ForCausalLM

with Path({marker!r}).open("a") as file:
    file.write("ran\\n")


class TheirConfig(Qwen3Config):
    model_type = "their_model"


class TheirModel(Qwen3ForCausalLM):
    config_class = TheirConfig
"""


def write_model_with_code(folder: Path, marker: Path) -> Path:
    """Write a small Qwen3 whose architecture is Python code in its folder, which appends to `marker` when imported."""
    folder.mkdir()
    make_random_qwen3(folder, 0)
    (folder / "theirs.py").write_text(_CODE.format(marker=str(marker)))
    code = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
    change_json(folder / "config.json", model_type="their_model", auto_map=code)
    return folder


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object in a file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def name_model(run: Path, path: str) -> None:
    """Change a run's config as a stranger may: it names another model, and asks to run its code."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] |= {"kind": "hf", "path": path, "trust_remote_code": True}
    (run / "config.yaml").write_text(yaml.safe_dump(config))


class _Hub(BaseHTTPRequestHandler):
    """A handler that knows no model."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET

    def log_message(self, format: str, *_: Any) -> None:
        pass


@contextmanager
def stand_in_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[list[str]]:
    """Put a loopback server in place of the hub, with an empty cache, and yield the paths of all requests."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setenv("HF_HUB_CACHE", str(cache))
        try:
            yield server.asked
        finally:
            server.shutdown()
