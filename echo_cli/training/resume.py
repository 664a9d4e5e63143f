"""Resume a run: reject a different config, traces or environment, and restore the run's state."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from echo_cli.config.episodes.several import as_single, in_environment
from echo_cli.config.loader import load_config
from echo_cli.config.schema import Config, flat_config, free_keys
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import members_of
from echo_cli.errors import EchoError
from echo_cli.models.backend import Policy
from echo_cli.models.distributed.launch import Launch
from echo_cli.objective.schedule import learning_rate_at, world_model_coeff_at
from echo_cli.runs.directory import RunDirectory, is_run
from echo_cli.runs.origin import write_config
from echo_cli.runs.provenance import read_record
from echo_cli.runs.summary import best_step
from echo_cli.text import counted, escape_unprintable
from echo_cli.traces.corpus import TraceCorpus


def restore_run(run: RunDirectory, config: Config, policy: Policy) -> tuple[int, dict[str, Any]]:
    """Restore policy and run directory to the latest checkpoint, and return its step and its meta."""
    # What the first rank sees: on a shared file system, others may see a checkpoint later.
    step = policy.ranks.first(lambda: max(run.checkpoints.steps(), default=0))
    meta: dict[str, Any] = {}
    if step > 0:
        folder, meta = policy.ranks.first(lambda: _verified(run, step))
        policy.ranks.each(lambda: policy.load(folder))
    # A run stopped before its first step starts again, with the evaluation before training.
    run.rewind(step if step > 0 else -1)
    best = policy.ranks.first(lambda: _kept_best(run, config))
    if best is not None:  # the mark is outdated if the run was killed between saving and marking
        run.checkpoints.mark_best(best)
    policy.ranks.first(lambda: write_config(run.path, config.to_yaml()))
    return step, meta


def _kept_best(run: RunDirectory, config: Config) -> int | None:
    """Return the best step by the recorded metrics, if it has a checkpoint."""
    best = best_step(run.read_metrics(), config.evaluation.select_by)
    return best if best in run.checkpoints.steps() else None


def _verified(run: RunDirectory, step: int) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the meta of the latest checkpoint, which is of `step`, before the run is changed."""
    found = run.load_checkpoint("latest")
    run.read_observations(step)  # raises on a damaged log
    return found


def continues_launch(path: Path, launch: Launch) -> bool:
    """Return whether torchrun has started the ranks again that have begun the run at `path`."""
    return launch.restarts > 0 and is_run(path) and read_record(path).get("launch") == launch.id


def check_same_config(run: RunDirectory, config: Config) -> None:
    """Reject a config that differs from the run's config in a key that is not free, or whose steps do not continue it.

    Raises:
        EchoError: there is such a key, and the message names the first; or the run is past the config's steps, or has
            trained at other values of a schedule than a run of these steps.
    """
    before = load_config(run.config_path)
    _check_names(run, before, config)
    free = free_keys()
    was_object, is_object = ([of.object is None for of in each.sections.values()] for each in (before, config))
    if was_object != is_object:
        free |= {"environment.object_options"}  # an environment moved into this process or out of it
    was, now = (flat_config(of.model_dump(mode="json")) for of in (before, config))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key) and free.isdisjoint(_upwards(".".join(as_single(tuple(key.split(".")))))):
            raise EchoError(
                f"cannot resume {run.path} with a different config: {key} was {was.get(key)}, now {now.get(key)}",
                "revert the change, or start another run with --run-name",
            )
    _check_steps(run, before, config)


def _check_names(run: RunDirectory, before: Config, config: Config) -> None:
    """Reject other environments, before their keys are compared: every key of a new name would differ."""
    was, now = (", ".join(each.sections) for each in (before, config))
    if was != now:
        raise EchoError(
            f"cannot resume {run.path} with other environments: they were {was or 'one'}, now {now or 'one'}",
            "revert the change, or start another run with --run-name",
        )


def _check_steps(run: RunDirectory, before: Config, config: Config) -> None:
    """Reject a number of steps at which a run of its own would not have trained as this run has."""
    path, done = escape_unprintable(run.path), max(run.checkpoints.steps(), default=0)
    if done > config.steps:
        raise EchoError(
            f"{path} is already at step {done}, past steps={config.steps}",
            f"set --steps to {done} or more, or start another run with --run-name",
        )
    schedule = _bent_schedule(before, config, done)
    if schedule is not None:
        raise EchoError(
            f"cannot resume {path} with steps={config.steps}: its {schedule} was stretched over "
            f"{counted(before.steps, 'step')}, {done} of which {'is' if done == 1 else 'are'} trained",
            f"train {counted(config.steps, 'step')} afresh with --run-name or --overwrite; to train on from its "
            f"weights, start another run with model.path={_weights_of(run, config, done)}",
        )


def _weights_of(run: RunDirectory, config: Config, step: int) -> str:
    """Return the model folder from which a new run trains on, as text for the user."""
    path = escape_unprintable(run.path)
    if config.model.lora is not None:
        return f"DIR, written by: echo-cli export {path} --checkpoint latest --merge -o DIR"
    return f"{path}/checkpoints/step_{step:06d}"


def _bent_schedule(before: Config, config: Config, done: int) -> str | None:
    """Return the schedule whose values at the trained steps depend on the number of steps, which differs; or None."""
    if any(
        learning_rate_at(before.optim, step, before.steps) != learning_rate_at(config.optim, step, config.steps)
        for step in range(done)
    ):
        return f"optim.lr_schedule: {before.optim.lr_schedule}"
    if any(
        world_model_coeff_at(before.objective, step, before.steps)
        != world_model_coeff_at(config.objective, step, config.steps)
        for step in range(done)
    ):
        return f"objective.schedule: {before.objective.schedule}"
    return None


def keep_threads(run: RunDirectory, config: Config) -> tuple[Config, list[str]]:
    """Return the config with the number of CPU threads that the run began with, unless the config sets another.

    The number decides the order of sums, and with it the last digits of every figure.

    Returns:
        The config, and a line for the user if the number differs from the run's first one or from this process's own.
    """
    began = read_record(run.path).get("threads")
    if not isinstance(began, int):
        return config, []
    threads, own = config.threads or began, torch.get_num_threads()
    lines = []
    if threads != began:
        lines = [
            f"{_threads(threads)}; the run began with {began}, so it differs from an uninterrupted run by rounding"
        ]
    elif own != began:
        lines = [f"{_threads(began)}, as the run began, instead of {own}; threads=N sets another number"]
    return config.model_copy(update={"threads": threads}), lines


def _threads(count: int) -> str:
    return counted(count, "CPU thread")


def _upwards(key: str) -> list[str]:
    """Return a key path and the sections that contain it."""
    parts = key.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts) + 1)]


def check_same_traces(run: RunDirectory, corpus: TraceCorpus) -> None:
    """Reject trace files whose bytes differ from the files that the run was trained on; their paths may differ."""
    record = read_record(run.path).get("traces")
    files = record.get("files") if isinstance(record, dict) else None
    before = [file.get("sha256") if isinstance(file, dict) else None for file in files or ()]
    for number, (path, now) in enumerate(zip(corpus.paths, corpus.sha256, strict=True)):
        if number >= len(before) or now != before[number]:
            raise EchoError(
                f"{escape_unprintable(path)} is not the file that {escape_unprintable(run.path)} was trained on: "
                f"its SHA-256 is {now[:12]}…",
                "restore the file, or start another run with --run-name",
            )
    if len(before) > len(corpus.paths):
        tip = "list all of them in traces.path, or start another run with --run-name"
        raise EchoError(
            f"{escape_unprintable(run.path)} was trained on {counted(len(before), 'trace file')}, "
            f"not {len(corpus.paths)}",
            tip,
        )


def worlds_record(worlds: TaskSuite) -> dict[str, Any]:
    """Return what a run records of its environment: its name, its sessions, and its tools by name, as SHA-256."""
    record = {"name": worlds.description.name, "sessions": worlds.hosting.sessions}
    tools = {
        tool["function"]["name"]: sha256(json.dumps(tool, sort_keys=True).encode()).hexdigest()
        for tool in worlds.description.tools
    }
    return {**record, "tools": tools} if tools else record


def check_same_environment(run: RunDirectory, worlds: TaskSuite) -> None:
    """Reject an environment whose reported name, or whose tools, differ from those that the run recorded.

    The tools are part of every episode's opening, so other tools are other data.
    """
    record = read_record(run.path).get("environment")  # None in runs of earlier versions
    before = record if isinstance(record, dict) else {}
    each = before.get("environments")
    for name, member in members_of(worlds).items():
        own = each.get(name) if name and isinstance(each, dict) else before
        with in_environment(name):
            _check_same(run, own if isinstance(own, dict) else {}, worlds_record(member))


def _check_same(run: RunDirectory, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Reject an environment that was recorded as `before` and is `now`, both of `worlds_record`."""
    path, name = escape_unprintable(run.path), before.get("name")
    if isinstance(name, str) and name != now["name"]:
        raise EchoError(
            f"{path} was trained in {escape_unprintable(name)}, but this environment "
            f"is {escape_unprintable(now['name'])}",
            f"use the address of {escape_unprintable(name)}, or start another run with --run-name",
        )
    had, has = before.get("tools"), now.get("tools", {})
    if isinstance(had, dict) and (
        tool := next((tool for tool in {**had, **has} if had.get(tool) != has.get(tool)), "")
    ):
        how = "has vanished" if tool not in has else "has changed" if tool in had else "is new"
        raise EchoError(
            f"the tools of {path} have changed since its start: '{escape_unprintable(tool)}' {how}",
            "serve the tools with which the run began (environment.mcp.deny drops new ones), or start another run "
            "with --run-name",
        )
