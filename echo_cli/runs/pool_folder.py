"""Frozen pools as folders of trajectories.jsonl and manifest.json.

    heldout-expert/
      trajectories.jsonl   one `Trajectory.to_json` object per line
      manifest.json        SHA-256 of trajectories.jsonl, its contents, and its provenance

A pool is text with roles. Its token ids belong to the actor that played it. `load_pool` encodes the text again, so that
every policy is measured in its own tokens; measures per byte are comparable across tokenizers.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from echo_cli.environments.tasks import Split
from echo_cli.errors import EchoError
from echo_cli.files import append_jsonl, delete, fsync, os_errors, read_json, sha256_of, unfinished_beside, write_json
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.rollouts.limits import EpisodeLimits
from echo_cli.runs.pools import pool_of
from echo_cli.symlinks import make_folder
from echo_cli.text import counted, escape_unprintable
from echo_cli.trajectory import NAMED_ROLES, Role, Trajectory, read_trajectories

FORMAT: Literal["echo-cli pool 1"] = "echo-cli pool 1"
MANIFEST, TRAJECTORIES = "manifest.json", "trajectories.jsonl"
_REPLACED = ".old-"
_REBUILD = "restore the folder from its source, or build the pool again with `echo-cli pool build`"


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Actor(_Record):
    """The actor of a pool: a script, or the checkpoint of `run` at `step` with the SHA-256 of its model.safetensors."""

    kind: Literal["expert", "explorer", "checkpoint"]
    run: str | None = None
    step: int | None = None
    model_sha256: str | None = None


class Provenance(_Record):
    """Provenance of the trajectories, sufficient to reproduce them with the same code and checkpoint.

    `temperature` and `seed` are None if nothing was sampled or drawn. The record has no host name, user name or path.
    """

    actor: Actor
    split: Split
    out_of_distribution: bool
    world_seeds: tuple[int, ...]
    rollouts_per_task: int
    only_solved: bool
    temperature: float | None
    seed: int | None
    limits: EpisodeLimits
    """Caps in tokens of the actor's tokenizer; outputs in the pool are truncated at these caps."""
    environment: dict[str, Any]
    """Resolved environment section of the config."""
    echo_cli: str
    git_commit: str | None


class Contents(_Record):
    """Counts of the contents of trajectories.jsonl."""

    trajectories: int
    pairs: int
    """Number of distinct (command, output) pairs, each of which is scored once."""
    bytes: dict[str, int]
    """Number of UTF-8 bytes by role."""
    env_output_bytes: dict[str, int]
    """Number of UTF-8 bytes of env_output by channel."""
    tokens: dict[str, int]
    """Number of tokens of the actor's tokenizer by role."""


class TokenizerRecord(_Record):
    """The actor's tokenizer: SHA-256 of its tokenizer.json, and its size."""

    sha256: str
    vocab_size: int


class Manifest(_Record):
    """Contents of manifest.json."""

    format: Literal["echo-cli pool 1"]
    name: str
    sha256: str
    """SHA-256 of trajectories.jsonl."""
    contents: Contents
    tokenizer: TokenizerRecord
    provenance: Provenance


def contents_of(trajectories: Sequence[Trajectory]) -> Contents:
    """Count the contents of `trajectories`."""
    segments = [segment for trajectory in trajectories for segment in trajectory.segments]
    bytes_by_role, tokens_by_role, channels = Counter[str](), Counter[str](), Counter[str]()
    for segment in segments:
        size, role = len(segment.text.encode()), segment.role.name.lower()
        bytes_by_role[role] += size
        tokens_by_role[role] += len(segment.token_ids)
        if segment.role is Role.ENV_OUTPUT:
            channels[segment.channel or "unnamed"] += size
    return Contents(
        trajectories=len(trajectories),
        pairs=len(pool_of(trajectories).pairs),
        bytes={role: bytes_by_role[role] for role in NAMED_ROLES},
        env_output_bytes=dict(sorted(channels.items())),
        tokens={role: tokens_by_role[role] for role in NAMED_ROLES},
    )


def write_pool(
    folder: Path,
    trajectories: Sequence[Trajectory],
    tokenizer: Tokenizer,
    provenance: Provenance,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write a pool to `folder` atomically: complete and on disk, or not at all.

    Args:
        tokenizer: tokenizer with which `trajectories` were played.
        overwrite: whether to replace an existing pool.

    Raises:
        EchoError: as `check_free`; no trajectory has an output to predict, or the folder cannot be written.
    """
    contents = contents_of(trajectories)
    if contents.pairs == 0:
        tip = "choose another --split, --actor or environment"
        raise EchoError(f"nothing to measure: no command has output in {_trajectories(contents)}", tip)
    check_free(folder, overwrite)
    final = folder.resolve()
    temporary = unfinished_beside(final)
    with os_errors(folder):
        make_folder(final.parent)
        temporary.mkdir(0o700)
        try:
            append_jsonl(temporary / TRAJECTORIES, (trajectory.to_json() for trajectory in trajectories))
            fsync(temporary / TRAJECTORIES)
            manifest = Manifest(
                format=FORMAT,
                name=final.name,
                sha256=sha256_of(temporary / TRAJECTORIES),
                contents=contents,
                tokenizer=TokenizerRecord(
                    sha256=hashlib.sha256(tokenizer.to_json().encode()).hexdigest(), vocab_size=tokenizer.vocab_size
                ),
                provenance=provenance,
            )
            write_json(temporary / MANIFEST, manifest.model_dump(mode="json"))
            _move(temporary, final)
        except BaseException:
            delete(temporary)
            raise
    return manifest


def check_free(folder: Path, overwrite: bool) -> None:
    """Reject a folder that `write_pool` must not write.

    Raises:
        EchoError: the path is a file, or the folder is not empty; with `overwrite`, it has files other than a pool's.
    """
    if folder.exists() and not folder.is_dir():
        raise EchoError(f"{escape_unprintable(folder)} is not a folder", "choose another OUT")
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if not names:
        return
    if MANIFEST not in names or read_json(folder / MANIFEST).get("format") != FORMAT:
        raise EchoError(f"{escape_unprintable(folder)} is not empty and not a pool", "choose another OUT")
    if not overwrite:
        raise EchoError(
            f"{escape_unprintable(folder)} already contains a pool",
            "replace it with --overwrite, or choose another OUT",
        )
    if foreign := sorted(names - {MANIFEST, TRAJECTORIES}):
        raise EchoError(
            f"{escape_unprintable(folder)} contains {escape_unprintable(foreign[0])}, which is not part of its pool",
            "move this file, or choose another OUT",
        )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a pool, without verifying that it matches the trajectories (see `read_pool`).

    Raises:
        EchoError: the folder does not exist, is not a pool, or its manifest is damaged or has another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        what = f"is not a pool: it has no {MANIFEST}" if folder.exists() else "does not exist"
        raise EchoError(f"{escape_unprintable(folder)} {what}", "give a folder created by `echo-cli pool build`")
    found = read_json(path).get("format")
    if found != FORMAT:
        raise EchoError(f"{escape_unprintable(path)}: its format is {found!r}, this version reads {FORMAT!r}", _REBUILD)
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        details = error.errors()[0]
        where = ".".join(str(part) for part in details["loc"])
        raise EchoError(
            f"{escape_unprintable(path)}: invalid manifest: {escape_unprintable(where)}: {details['msg']}", _REBUILD
        ) from error


def verify_pool(folder: Path) -> tuple[Manifest, Path]:
    """Return the manifest of a pool and the path of its trajectories, after verifying the SHA-256 of the file.

    Raises:
        EchoError: as `read_manifest`; the file is missing or was changed.
    """
    manifest, path = read_manifest(folder), folder / TRAJECTORIES
    if not path.is_file():
        raise EchoError(f"{escape_unprintable(folder)} has no {TRAJECTORIES}", _REBUILD)
    found = sha256_of(path)
    if found != manifest.sha256:
        said = f"its SHA-256 is {found[:12]}…, the manifest says {escape_unprintable(manifest.sha256[:12])}…"
        raise EchoError(f"{escape_unprintable(path)} was changed after the pool was built: {said}", _REBUILD)
    return manifest, path


def read_pool(folder: Path) -> tuple[Manifest, list[Trajectory]]:
    """Return the manifest of a pool and its trajectories as played, after verifying them against the manifest.

    Raises:
        EchoError: as `verify_pool`; the trajectories do not match the manifest, or have no output to predict.
    """
    manifest, path = verify_pool(folder)
    trajectories = list(read_trajectories(path))
    for number, trajectory in enumerate(trajectories, start=1):
        actions = sum(segment.role is Role.ACTION for segment in trajectory.segments)
        if actions != len(trajectory.turns):
            problem = f"{counted(actions, 'action')} but {counted(len(trajectory.turns), 'turn')}"
            raise EchoError(f"{escape_unprintable(path)}:{number}: invalid trajectory in a pool: {problem}", _REBUILD)
    contents = contents_of(trajectories)
    if contents.pairs == 0:
        raise EchoError(
            f"{escape_unprintable(folder)} has nothing to measure: no output in {_trajectories(contents)}", _REBUILD
        )
    if contents != manifest.contents:
        raise EchoError(f"{escape_unprintable(folder / MANIFEST)}: its contents do not match {TRAJECTORIES}", _REBUILD)
    return manifest, trajectories


def _trajectories(contents: Contents) -> str:
    return counted(contents.trajectories, "trajectory", "trajectories")


def _move(temporary: Path, final: Path) -> None:
    """Rename the finished folder, replacing an existing pool."""
    fsync(temporary)
    replaced = final.with_name(_REPLACED + final.name)
    if final.exists():
        delete(replaced)
        final.rename(replaced)
    temporary.rename(final)
    fsync(final.parent)
    delete(replaced)
