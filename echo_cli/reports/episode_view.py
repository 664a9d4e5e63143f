"""View of one recorded episode: its group, its advantage, and token losses under one or two policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from echo_cli.config.objective import AdvantageKind, ObjectiveSettings
from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.evaluation.loaded_run import LoadedRun
from echo_cli.evaluation.token_losses import TokenLosses, pieces_of, token_losses
from echo_cli.models.backend import Policy
from echo_cli.models.loading import open_policy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.objective.advantages import advantages
from echo_cli.runs.recordings import Recording, step_of
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, trajectory_of
from echo_cli.traces.retokenize import render_trace
from echo_cli.trajectory import Role, Segment, Trajectory

INITIAL = "initial"
"""Name of the initial policy among the names of checkpoints."""


@dataclass(frozen=True)
class Group:
    """An episode's group as recorded in the file, and the advantage of the episode within it."""

    group_id: str
    rewards: tuple[float | None, ...]
    """Rewards of the group's rollouts in the file's order, the episode included, without world-model-only rollouts."""
    kind: AdvantageKind
    advantage: float | None
    note: str
    """Reason why there is no advantage, or why it may differ from training's; empty otherwise."""


@dataclass(frozen=True)
class RoleNats:
    """Loss over the scored tokens of a role."""

    tokens: int
    """Number of tokens."""
    nats_per_token: float


@dataclass(frozen=True)
class EpisodeView:
    """An episode with its group and its token losses by policy."""

    number: int
    """Number of the episode in the recording, 1-based."""
    step: int | None
    trace: Trace
    group: Group
    heats: Mapping[str, Sequence[TokenLosses]]
    """Token losses of the segments, by name of the policy."""
    note: str
    """Note on the part of the episode that was not scored; empty if all of it was."""

    def by_role(self, name: str) -> dict[str, RoleNats]:
        """Return the loss of each scored role under the policy `name`."""
        found: dict[str, RoleNats] = {}
        for role in (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING, Role.END):
            nats = [value for heat in self.heats[name] if heat.segment.role is role for value in heat.nats or ()]
            if nats:
                found[role.name.lower()] = RoleNats(len(nats), sum(nats) / len(nats))
        return found

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; with policies, it includes the nats and the text of each token."""
        return {
            "number": self.number,
            "step": self.step,
            "group": asdict(self.group),
            "trajectory": self.trace.to_json(),
            "note": self.note,
            "nats_per_token": {
                name: {role: asdict(nats) for role, nats in self.by_role(name).items()} for name in self.heats
            },
            "heat": {
                name: [
                    {
                        "role": heat.segment.role.name.lower(),
                        "channel": heat.segment.channel,
                        "token_ids": list(heat.segment.token_ids),
                        "pieces": list(heat.pieces),
                        "nats": None if heat.nats is None else list(heat.nats),
                    }
                    for heat in heats
                ]
                for name, heats in self.heats.items()
            },
        }


def view_episode(
    recording: Recording, number: int, *, checkpoints: Sequence[str | int] = (), model: tuple[str, Config] | None = None
) -> EpisodeView:
    """Return a view of an episode of a recording.

    Args:
        number: number of the episode, 1-based.
        checkpoints: policies of the recording's run that score the episode: `initial`, `best`, `latest` or steps.
        model: label of a model that scores the episode instead, and the config that loads it; the episode is rendered
            in the model's tokens.

    If the run's model cannot be loaded here, the episode is not scored, and a note says why.

    Raises:
        EchoError: the episode, checkpoint or model does not exist, or the episode is not in the policy's tokens.
    """
    trace = recording.episode(number)
    heats: dict[str, Sequence[TokenLosses]] = {}
    note = ""
    if model is not None:
        label, config = model
        policy, _ = open_policy(config)
        heats[label], note = _heat(policy, render_trace(trace, policy.renderer))
    elif checkpoints:
        assert recording.run is not None and recording.config is not None
        run = LoadedRun(recording.run, recording.config)
        folders = _folders(run, checkpoints)
        try:
            policy = run.policy()
        except EchoError as error:
            note = f"no nats per token, as the run's model cannot be loaded: {error.message} ({error.tip})"
            return EpisodeView(number, step_of(trace), trace, group_of(recording, trace), {}, note)
        trajectory = _as_played(trace, policy.tokenizer, recording, number)
        if recording.config.objective.end_of_output:
            trajectory = policy.mark_ends(trajectory)
        for name, folder in sorted(folders.items(), key=lambda item: item[1] is not None):
            if folder is not None:  # until the first load, `policy` is the initial policy
                policy.load(folder)
            heats[name], note = _heat(policy, trajectory)
        heats = {name: heats[name] for name in folders}
    return EpisodeView(number, step_of(trace), trace, group_of(recording, trace), heats, note)


def group_of(recording: Recording, trace: Trace) -> Group:
    """Return the group of an episode as recorded, with the episode's advantage.

    Rollouts of a group share its id and step. World-model-only rollouts do not belong to a group.
    """
    objective = ObjectiveSettings() if recording.config is None else recording.config.objective
    rewards = [
        other.reward
        for other in (recording.traces() if trace.group_id else ())
        if other.group_id == trace.group_id and step_of(other) == step_of(trace) and not other.world_model_only
    ]
    group = Group(trace.group_id, tuple(rewards), objective.advantage, None, "")
    if trace.world_model_only:
        return replace(group, note="no advantage: the episode is for the env term only")
    if not objective.use_rl:
        return replace(group, note="no advantage: the run has no RL term")
    if not trace.group_id:
        return replace(group, note="no advantage: the episode has no group")
    if trace.reward is None:
        return replace(group, note="no advantage: the episode has no reward")
    known = [reward for reward in rewards if reward is not None]
    advantages_G = advantages(torch.tensor(known, dtype=torch.float64), [trace.group_id] * len(known), group.kind)
    advantage = float(advantages_G[known.index(trace.reward)])  # equal rewards have equal advantages
    return replace(group, advantage=advantage, note=_incomplete(recording, rewards))


def _incomplete(recording: Recording, rewards: Sequence[float | None]) -> str:
    unscored = sum(reward is None for reward in rewards)
    if unscored:
        return f"the group is incomplete: {unscored} of {len(rewards)} recorded rollouts have no reward"
    if recording.config is None:
        return "computed over the rollouts of the group in the file"
    size, where = recording.config.evaluation.group_size, "an evaluation"
    if recording.training:
        size, where = recording.config.rollout.group_size, "a task in a step"
    if len(rewards) != size:
        return f"the group is incomplete: {len(rewards)} of the {size} rollouts of {where} are recorded"
    return ""


def _folders(run: LoadedRun, checkpoints: Sequence[str | int]) -> dict[str, Path | None]:
    """Return the folders of checkpoints by display name; None for the initial policy."""
    folders: dict[str, Path | None] = {}
    for which in checkpoints:
        folder, step = (None, 0) if which == INITIAL else run.checkpoint(which)
        name = INITIAL if folder is None else f"step {step}"
        if name in folders:
            raise EchoError(f"--against and --checkpoint name the same policy: {name}", "name another policy")
        folders[name] = folder
    return folders


def _as_played(trace: Trace, tokenizer: Tokenizer, recording: Recording, number: int) -> Trajectory:
    """Return the episode as a trajectory in the token ids sampled by the run's policy."""
    where = f"episode {number} of {escape_unprintable(recording.place)}"
    tip = "the file was modified; score its text in a model's own tokens with --model NAME"
    ids = [token for segment in trace.segments for token in segment.token_ids or ()]
    if not trace.has_token_ids or not all(0 <= token < tokenizer.vocab_size for token in ids):
        raise EchoError(f"{where} is not in the tokens of the run's policy", tip)
    try:
        return trajectory_of(trace)
    except ValueError as error:
        raise EchoError(f"{where} cannot be scored: {error}", tip) from error


def _heat(policy: Policy, trajectory: Trajectory) -> tuple[list[TokenLosses], str]:
    """Score the part of a trajectory that fits the model's context; return all segments, and a note on the rest."""
    most = policy.model.max_length
    if len(trajectory) <= most:
        return token_losses(policy, [trajectory])[0], ""
    fitting, rest = _split(trajectory.segments, most, policy.tokenizer)
    scored = token_losses(policy, [replace(trajectory, segments=tuple(fitting))])[0] if fitting else []
    note = f"the episode has {len(trajectory)} tokens, the model's context is {most}: later tokens are not scored"
    return [*scored, *(TokenLosses(segment, (segment.text,), None) for segment in rest)], note


def _split(segments: Sequence[Segment], most: int, tokenizer: Tokenizer) -> tuple[list[Segment], list[Segment]]:
    """Split segments after `most` tokens; a segment that spans the split is divided."""
    fitting, rest, left = list[Segment](), list[Segment](), most
    for segment in segments:
        if rest or not left:
            rest.append(segment)
        elif len(segment.token_ids) <= left:
            fitting.append(segment)
            left -= len(segment.token_ids)
        else:
            text = "".join(pieces_of(segment, tokenizer)[:left])
            whole = replace(segment, logprobs=None, transient=0)
            fitting.append(replace(whole, text=text, token_ids=segment.token_ids[:left]))
            rest.append(replace(whole, text=segment.text[len(text) :], token_ids=segment.token_ids[left:]))
    return fitting, rest
