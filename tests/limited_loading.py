"""Load model folders in a process with little memory, and print what was said about each, as JSON.

    python limited_loading.py MIB '{"name": {"folder": FOLDER, "model": {…}, "only_check": false}}'

The limit is on the address space that is added to the imported libraries. `model` are keys of `ModelConfig`.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from hf_models import CPU

from echo_cli.config.model import ModelConfig
from echo_cli.errors import EchoError
from echo_cli.models.hf.loading import check_hf_model, load_hf_model
from echo_cli.models.hf.tokenizer import load_hf_tokenizer
from echo_cli.models.tiny import load_model


def said_about(folder: Path, model: dict[str, Any], *, only_check: bool) -> str:
    """Load a folder and return the message of its refusal, or `loaded`."""
    config = ModelConfig(path=str(folder), **model)
    try:
        if config.kind == "tiny":
            load_model(folder)
            return "loaded"
        if (folder / "tokenizer_config.json").is_file():
            load_hf_tokenizer(folder, config)
        if only_check:
            check_hf_model(folder, config, torch.float32, 0, 0)
        else:
            load_hf_model(folder, config, CPU, torch.float32, 0, 0)
    except EchoError as error:
        return error.message
    return "loaded"


def main() -> None:
    """Load the first folder without a limit, to import everything, and the others within it."""
    torch.set_num_threads(1)
    cases = json.loads(sys.argv[2])
    found, limited = {}, False
    for name, case in cases.items():
        found[name] = said_about(Path(case["folder"]), case["model"], only_check=case["only_check"])
        if not limited:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            size = 1024 * int(status["VmSize"].split()[0]) + int(sys.argv[1]) * 2**20
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            limited = True
    print(json.dumps(found))


if __name__ == "__main__":
    main()
