"""Weights & Biases, in `wandb/` of the run directory: offline, unless WANDB_MODE or an API key is set.

To view an offline run, upload it: `wandb sync outputs/RUN/wandb/offline-run-*`.
"""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from echo_cli.files import delete, write_atomic
from echo_cli.symlinks import make_folder
from echo_cli.training.trackers.tracking import TrackedRun


class WandbRun:
    """A run of the project `echo-cli`, or WANDB_PROJECT, that only records metrics.jsonl, the config and the summary.

    No code, console output, machine data or system statistics are recorded, and no crash is reported to wandb.
    """

    def __init__(self, run: TrackedRun) -> None:
        folder = Path(run.folder) / "wandb"
        make_folder(folder)
        for name, value in {
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_CACHE_DIR": str(folder / "cache"),
            "WANDB_DATA_DIR": str(folder / "data"),
        }.items():
            os.environ.setdefault(name, value)
        # wandb's own process would get the key in its variables, which other processes of the user can read.
        key = os.environ.pop("WANDB_API_KEY", None)
        import wandb

        self._wandb = wandb
        settings = wandb.setup().settings
        asked = os.environ.get("WANDB_MODE") or has_key(settings.base_url, key or settings.api_key)
        id_file = folder / "run-id"
        resumed = run.last_step is not None and id_file.exists()
        run_id = id_file.read_text() if resumed else secrets.token_hex(4)
        write_atomic(id_file, run_id.encode())
        # `wandb sync` uploads each folder of an offline run from its first row, and the new folder has all rows.
        for path in folder.glob(f"offline-run-*-{run_id}"):
            delete(path)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "echo-cli",
            id=run_id,
            name=run.name,
            group=run.group,
            dir=run.folder,
            config=run.config,
            mode=None if asked else "offline",
            resume="allow" if resumed else None,
            settings=wandb.Settings(
                api_key=key,
                silent=True,
                console="off",
                symlink=False,
                host="localhost",
                save_code=False,
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self.first_step = 0 if self._run.offline or self._run.disabled else self._run.starting_step

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any] | None) -> None:
        if summary is not None:
            self._run.summary.update(dict(summary))
        ended_well = summary is not None and summary["status"] in ("finished", "stopped")
        self._run.finish(exit_code=0 if ended_well else 1)
        self._wandb.teardown()


open_tracker = WandbRun


def has_key(base_url: str, in_settings: str | None) -> bool:
    """Return whether wandb would find an API key in its environment variables, its settings or .netrc."""
    if in_settings or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(base_url).netloc
    named = os.environ.get("NETRC")
    files = [Path(named).expanduser()] if named else [Path.home() / name for name in (".netrc", "_netrc")]
    return any(path.is_file() and netrc.netrc(path).authenticators(host) is not None for path in files)
