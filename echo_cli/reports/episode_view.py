"""One recorded episode to look at: its group and advantage, and how hard one policy or two find its tokens."""

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
from echo_cli.models.loading import open_policy
from echo_cli.models.policy import TorchPolicy
from echo_cli.models.tokenizer import Tokenizer
from echo_cli.objective.advantages import advantages
from echo_cli.runs.recordings import Recording, step_of
from echo_cli.text import escape_unprintable
from echo_cli.trace import Trace, trajectory_of
from echo_cli.traces.retokenize import render_trace
from echo_cli.trajectory import Role, Segment, Trajectory

INITIAL = "initial"
"""The policy that a run started from, among the names of its checkpoints."""


@dataclass(frozen=True)
class Group:
    """The rollouts of an episode's group that the file has, and the advantage of the episode among them."""

    group_id: str
    rewards: tuple[float | None, ...]
    """Of each, in the file's order, the episode's own among them; world-model-only rollouts are left out."""
    kind: AdvantageKind
    advantage: float | None
    note: str
    """Why there is no advantage, or what it lacks to be the one of training; empty where nothing is to be said."""


@dataclass(frozen=True)
class RoleNats:
    """The scored tokens of a role."""

    tokens: int
    nats_per_token: float


@dataclass(frozen=True)
class EpisodeView:
    """An episode, its place in the recording, its group, and its heat by the names of policies."""

    number: int
    step: int | None
    trace: Trace
    group: Group
    heats: Mapping[str, Sequence[TokenLosses]]
    note: str
    """What of the episode the policies could not be shown; empty where they scored all of it."""

    def by_role(self, name: str) -> dict[str, RoleNats]:
        """What the policy `name` makes of each role that it scored."""
        found: dict[str, RoleNats] = {}
        for role in (Role.ACTION, Role.ENV_OUTPUT, Role.WARNING):
            nats = [value for heat in self.heats[name] if heat.segment.role is role for value in heat.nats or ()]
            if nats:
                found[role.name.lower()] = RoleNats(len(nats), sum(nats) / len(nats))
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON object; with policies, the nats of each token beside its piece of the text."""
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
    """The `number`th episode of a recording, from 1.

    Args:
        checkpoints: of the recording's run, `initial`, `best`, `latest` or steps: the policies that score it.
        model: or a model, by its label, with the config that loads it; the episode is written in its tokens.

    Raises:
        EchoError: there is no such episode, checkpoint or model, or the episode is not in the policy's tokens.
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
        policy = run.policy()
        trajectory = _as_played(trace, policy.tokenizer, recording, number)
        for name, folder in sorted(folders.items(), key=lambda item: item[1] is not None):
            if folder is not None:  # as it was opened, it is the initial policy
                policy.load(folder)
            heats[name], note = _heat(policy, trajectory)
        heats = {name: heats[name] for name in folders}
    return EpisodeView(number, step_of(trace), trace, group_of(recording, trace), heats, note)


def group_of(recording: Recording, trace: Trace) -> Group:
    """The group of an episode as far as the recording has it, and the advantage of the episode in it.

    Rollouts of one group have its name and are of one step. World-model-only rollouts have no part in it.
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
        return replace(group, note="no advantage: the episode says no group")
    if trace.reward is None:
        return replace(group, note="no advantage: the episode has no reward")
    known = [reward for reward in rewards if reward is not None]
    advantages_G = advantages(torch.tensor(known, dtype=torch.float64), [trace.group_id] * len(known), group.kind)
    advantage = float(advantages_G[known.index(trace.reward)])  # equal rewards have equal ones
    return replace(group, advantage=advantage, note=_incomplete(recording, rewards))


def _incomplete(recording: Recording, rewards: Sequence[float | None]) -> str:
    unscored = sum(reward is None for reward in rewards)
    if unscored:
        return f"the group is incomplete: {unscored} of {len(rewards)} rollouts here have no reward"
    if recording.config is None:
        return "as far as the file has the group"
    size = recording.config.evaluation.group_size
    if len(rewards) != size:
        return f"the group is incomplete: {len(rewards)} of the {size} rollouts that an evaluation plays are here"
    return ""


def _folders(run: LoadedRun, checkpoints: Sequence[str | int]) -> dict[str, Path | None]:
    """The folders of checkpoints by the names that they are shown under; None for the policy before training."""
    folders: dict[str, Path | None] = {}
    for which in checkpoints:
        folder, step = (None, 0) if which == INITIAL else run.checkpoint(which)
        name = INITIAL if folder is None else f"step {step}"
        if name in folders:
            raise EchoError(f"--against is the policy that --checkpoint names: {name}", "name another one")
        folders[name] = folder
    return folders


def _as_played(trace: Trace, tokenizer: Tokenizer, recording: Recording, number: int) -> Trajectory:
    """The trajectory in the ids that the run's policy played it in."""
    where = f"episode {number} of {escape_unprintable(recording.place)}"
    tip = "the file was changed; --model NAME scores its text in that model's own tokens"
    ids = [token for segment in trace.segments for token in segment.token_ids or ()]
    if not trace.has_token_ids or not all(0 <= token < tokenizer.vocab_size for token in ids):
        raise EchoError(f"{where} is not in the tokens of the run's policy", tip)
    try:
        return trajectory_of(trace)
    except ValueError as error:
        raise EchoError(f"{where} cannot be scored: {error}", tip) from error


def _heat(policy: TorchPolicy, trajectory: Trajectory) -> tuple[list[TokenLosses], str]:
    """The heat of what of a trajectory fits the model's context, the rest unscored, and a note of what did not fit."""
    most = policy.model.max_length
    if len(trajectory) <= most:
        return token_losses(policy, [trajectory])[0], ""
    fitting, rest = _split(trajectory.segments, most, policy.tokenizer)
    scored = token_losses(policy, [replace(trajectory, segments=tuple(fitting))])[0] if fitting else []
    note = f"it has {len(trajectory)} tokens and the model takes {most}: what comes after them is not scored"
    return [*scored, *(TokenLosses(segment, (segment.text,), None) for segment in rest)], note


def _split(segments: Sequence[Segment], most: int, tokenizer: Tokenizer) -> tuple[list[Segment], list[Segment]]:
    """Segments up to `most` tokens, and from there on; one that reaches past it is in both, a part in each."""
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
