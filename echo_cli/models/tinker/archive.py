"""The adapter of a checkpoint at a Tinker service, written to a folder that peft and transformers load."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import httpx

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError, first_line
from echo_cli.files import Row, read_json
from echo_cli.models.tinker.adapter import Adapter
from echo_cli.models.tinker.policy import STATE_FILE
from echo_cli.models.tinker.service import Service
from echo_cli.models.weight_files import ADAPTER_FILE, file_shapes
from echo_cli.text import escape_unprintable

ADAPTER_CONFIG = "adapter_config.json"
_MOST_BYTES = 16 * 2**30
_MIDDLE = ".lora_A."


def write_adapter(config: Config, checkpoint: Path, folder: Path) -> None:
    """Write the adapter of a run's checkpoint to `folder`: its weights, and a config that names its layers and base.

    Raises:
        EchoError: as in `Service`; the service no longer has the state, or its archive holds no adapter.
    """
    assert config.service is not None
    state, service = read_json(checkpoint / STATE_FILE), Service(config.service)
    adapter = Adapter.new(service, str(state["base_model"]), int(state["lora_rank"]), seed=0)
    try:
        adapter.load_state(str(state["state"]))
        url = service.archive_url(adapter.save_weights())
        _unpack(service.call("send an archive", lambda: _download(url)), folder, url)
    finally:
        adapter.close()
    _name_layers(folder, config.model.path)


def _download(url: str) -> bytes:
    """Return the archive at a URL of the service, which may be another host's: no key is sent."""
    parts, size = [], 0
    with httpx.stream("GET", url, follow_redirects=True, timeout=60) as response:
        response.raise_for_status()
        for part in response.iter_bytes():
            size += len(part)
            if size > _MOST_BYTES:
                raise ValueError(f"the archive has more than {_MOST_BYTES} bytes")
            parts.append(part)
    return b"".join(parts)


def _unpack(archive: bytes, folder: Path, url: str) -> None:
    """Write the two files of an adapter, whatever else the archive contains and wherever it wants it."""
    wanted, found = {ADAPTER_FILE, ADAPTER_CONFIG}, dict[str, bytes]()
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member) if member.isfile() and name in wanted - found.keys() else None
                if file is not None:
                    found[name] = file.read()
    except Exception as error:  # tarfile's own, and those of each compression
        message = f"the archive at {url} is damaged: {first_line(error)}"
        raise EchoError(message, "check the service's log", exit_code=1) from error
    if missing := wanted - found.keys():
        raise EchoError(f"the archive at {url} has no {min(missing)}", "check the service's log", exit_code=1)
    for name, content in found.items():
        (folder / name).write_bytes(content)


def _name_layers(folder: Path, base: str) -> None:
    """Set the layers in adapter_config.json from the names of the tensors.

    SkyRL writes none; peft would take the architecture's usual ones, and leave out the weights of the others silently.
    """
    path = folder / ADAPTER_CONFIG
    written: Row = read_json(path)
    names = file_shapes(folder / ADAPTER_FILE)
    layers = sorted({name.partition(_MIDDLE)[0].rpartition(".")[2] for name in names if _MIDDLE in name})
    if not layers:
        raise EchoError(f"{escape_unprintable(folder / ADAPTER_FILE)} has no adapter", "check the service", exit_code=1)
    own = {"target_modules": layers, "base_model_name_or_path": base, "task_type": "CAUSAL_LM", "inference_mode": True}
    path.write_text(json.dumps({**written, **own}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
