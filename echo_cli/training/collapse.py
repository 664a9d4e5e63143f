"""Early detection of collapse: alarms computed from metric rows alone, so that a resumed run raises the same alarms.

Most signals are levels of the on-policy rollouts (rollouts/behaviour.py). A level raises an alarm if its mean over the
last `window` steps is beyond an absolute bound *and* worse than the run's own best window by the factor `change`: a run
that starts low is not collapsing, and a run that learns first is compared with its best. For a level with a ceiling,
the best window's distance to the ceiling must exceed the bound's distance by the factor. The current distance is not
compared, because near the ceiling a few rollouts multiply it. A window covers at least `min_tasks` tasks, over as many
steps as needed: over five steps of one task each, the selection of tasks would determine the mean more than the policy
does.

Three signals combine several metrics:

- `easy_rollouts`: the reward is below the fraction `min_reward_kept` of its best, and since then the env-CE of
  on-policy observations has fallen by the factor `change`: the rollouts are easy to predict and useless (reported for
  λ = 0.2 in the ECHO paper, arXiv 2605.24517).
- `ood`: out-of-distribution env-CE has risen by the factor `max_ood_rise` over its start on the same pairs, while
  held-out env-CE is no better than its own start. While held-out env-CE improves, a rise out of distribution is the
  price of learning a world.

- `no_gradient`: a step without any gradient, as long as no step of the run has had an observation, a reward or a
  gradient; later, `window` such steps in a row. It does not wait for `min_tasks`, since a policy that learns nothing
  does not change, and it does not lower λ.

Each signal raises at most one alarm in a run. A signal without values, as in verifier-free runs on scripts, raises no
alarm. Signals of diversity are counted within a step and are insensitive if a step has few tasks: by default, one
distinct command is enough for two tasks and one distinct observation for four, and a short text does not compress. The
other signals also work with few tasks.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from echo_cli.config.episodes.rollout import RolloutConfig
from echo_cli.config.schema import CollapseConfig
from echo_cli.errors import EchoError
from echo_cli.rollouts.behaviour import find_obstacles
from echo_cli.text import counted

Row = Mapping[str, Any]
NO_GRADIENT = "no_gradient"

_TIP = (
    "continue from its checkpoint with --resume and collapse.action=warn, "
    "or try a lower objective.world_model_coeff or optim.lr"
)

_NO_GRADIENT_TIP = "train again after that, or continue from its checkpoint with --resume and collapse.action=warn"


class CollapseError(EchoError):
    """An error that ends a collapsed run with `collapse.action: stop`; exit code 3."""

    status = "collapsed"
    """Status of the run that it ends."""


class NoGradientError(CollapseError):
    """An error that ends a run in which nothing has had a gradient."""

    status = NO_GRADIENT


@dataclass(frozen=True)
class Alarm:
    """A signal of collapse, the step after which it was raised, and the reason in one line."""

    signal: str
    step: int
    reason: str

    def to_json(self) -> dict[str, str]:
        """Return the entry in the `warnings` of the step's row."""
        return {"signal": self.signal, "reason": self.reason}


def alarms(rows: Sequence[Row], settings: CollapseConfig, rollout: RolloutConfig) -> list[Alarm]:
    """Return all alarms of a run, in order; the `warnings` in its rows are ignored."""
    found: list[Alarm] = []
    for count in range(1, len(rows) + 1):
        found += new_alarms(rows[:count], settings, rollout, {alarm.signal for alarm in found})
    return found


def new_alarms(
    rows: Sequence[Row], settings: CollapseConfig, rollout: RolloutConfig, raised: Collection[str]
) -> list[Alarm]:
    """Return the alarms raised by the last of `rows`, except those of signals in `raised`.

    Args:
        rollout: settings of the rollouts. The action cap is the ceiling of the mean action length. The bound on the
            compression ratio grows with the group size, because rollouts of one task converge in a healthy run. The
            number of tasks per step determines the length of the window.
        raised: signals with an earlier alarm.
    """
    if settings.action == "off" or not rows:
        return []
    stuck = _no_gradient(rows, settings, rollout)
    window = max(settings.window, math.ceil(settings.min_tasks / max(rollout.tasks_per_step, 1)))
    settings = settings.model_copy(update={"window": window})
    reasons = {level.signal: _level_reason(level, rows, settings) for level in _levels(settings, rollout)}
    reasons |= {NO_GRADIENT: stuck, "easy_rollouts": _easy_rollouts(rows, settings), "ood": _ood(rows[-1], settings)}
    step = int(rows[-1]["step"])
    return [Alarm(signal, step, reason) for signal, reason in reasons.items() if reason and signal not in raised]


def lambda_factor(rows: Sequence[Row], settings: CollapseConfig) -> float:
    """Return the factor on λ after `rows`: `lower_factor` per step with alarms if the action is `lower_lambda`, else 1.

    Several alarms at one step count once, because one collapse affects several signals. A step without any gradient is
    no reason to learn less from observations.
    """
    if settings.action != "lower_lambda":
        return 1.0
    signals = ({warning["signal"] for warning in row.get("warnings") or ()} for row in rows)
    return float(settings.lower_factor ** sum(bool(raised - {NO_GRADIENT}) for raised in signals))


def stop_if_collapsed(rows: Sequence[Row], settings: CollapseConfig) -> None:
    """Check that no step has an alarm if `collapse.action` is `stop`.

    Raises:
        CollapseError: a step has one; the message names the reasons of the first such step. It is a NoGradientError if
            the step's only alarm is `no_gradient`.
    """
    first = next((row for row in rows if row.get("warnings")), None)
    if first is not None and settings.action == "stop":
        reasons = "; ".join(f"{warning['signal']}: {warning['reason']}" for warning in first["warnings"])
        if all(warning["signal"] == NO_GRADIENT for warning in first["warnings"]):
            raise NoGradientError(f"stopped at step {first['step']}: {reasons}", _NO_GRADIENT_TIP, exit_code=3)
        raise CollapseError(f"collapsed at step {first['step']}: {reasons}", _TIP, exit_code=3)


def no_gradient_line(rows: Sequence[Row], rollout: RolloutConfig) -> str | None:
    """Return a line if the last of `rows` is the run's first step without any gradient, with the cause and a remedy.

    If the step raised the alarm, which says the same, there is no line.
    """
    flat = [row for row in rows if row.get("train/grad_norm") == 0]
    if flat != [rows[-1]] or any(warning["signal"] == NO_GRADIENT for warning in rows[-1].get("warnings", ())):
        return None
    return f"warning: step {rows[-1]['step']} has no gradient: {_why_no_gradient(rows[-1], rollout)}"


def _why_no_gradient(row: Row, rollout: RolloutConfig) -> str:
    signals = {key.removeprefix("train/"): value for key, value in row.items() if key.startswith("train/")}
    found = find_obstacles(signals, rollout)
    if row.get("train/lambda") and row.get("train/env_unselected_fraction") == 1:
        return "no observation is selected; lower objective.env_min_action_entropy, or raise env_weights"
    cut = row.get("train/traces_cut")
    if cut and not row.get("train/env_tokens"):
        return f"{counted(cut, 'trace')} cut before the first observation; raise traces.max_tokens"
    if not found:
        return "no token has a loss; check objective.min_*_fraction, max_correct_fraction and λ"
    return f"{', '.join(finding.message for finding in found)}; {found[0].tip}"


def _no_gradient(rows: Sequence[Row], settings: CollapseConfig, rollout: RolloutConfig) -> str | None:
    steps = [row for row in rows if row.get("train/grad_norm") is not None]
    if not steps or steps[-1]["train/grad_norm"] != 0:
        return None
    last = steps[-settings.window :]
    idle = all(not row.get(f"train/{name}") for row in steps for name in ("grad_norm", "env_tokens", "reward"))
    if not idle and (len(last) < settings.window or any(row["train/grad_norm"] for row in last)):
        return None
    span = "" if idle else f" in {counted(settings.window, 'step')}"
    return f"no gradient{span}: {_why_no_gradient(steps[-1], rollout)}"


@dataclass(frozen=True)
class _Level:
    """A metric with a lower or an upper bound."""

    signal: str
    metric: str
    """Name of the metric in a row, without `train/`."""
    what: str
    """Subject of the reason."""
    figure: str
    """Format of the values in the reason."""
    low: float | None = None
    high: float | None = None
    ceiling: float | None = None

    @property
    def key(self) -> str:
        return f"train/{self.metric}"

    def is_beyond(self, value: float) -> bool:
        return value < self.low if self.low is not None else self.high is not None and value > self.high

    def is_worse(self, now: float, best: float, change: float) -> bool:
        """Return whether `now`, which is beyond the bound, is worse than `best` by the factor `change`."""
        if self.low is not None:
            return now * change < best
        if self.ceiling is not None and self.high is not None:
            return (self.ceiling - self.high) * change < self.ceiling - best
        return now > best * change


def _levels(settings: CollapseConfig, rollout: RolloutConfig) -> list[_Level]:
    longest = float(rollout.max_action_tokens)
    repetitive = settings.max_compression * rollout.group_size
    return [
        _Level("entropy", "entropy", "action entropy", "{:.3g} nats", settings.min_entropy),
        _Level("short_actions", "action_length", "mean action", "{:.3g} tokens", settings.min_action_length),
        _Level(
            "long_actions",
            "action_length",
            "mean action",
            "{:.3g} tokens",
            high=settings.max_action_fill * longest,
            ceiling=longest,
        ),
        _Level("valid_actions", "valid_action_fraction", "valid actions", "{:.0%}", settings.min_valid_action_fraction),
        _Level(
            "capped",
            "capped_fraction",
            "rollouts that end at a cap",
            "{:.0%}",
            high=settings.max_capped_fraction,
            ceiling=1.0,
        ),
        _Level("commands", "commands_per_task", "distinct commands", "{:.3g} per task", settings.min_commands_per_task),
        _Level(
            "observations",
            "observations_per_task",
            "distinct observations",
            "{:.3g} per task",
            settings.min_observations_per_task,
        ),
        _Level(
            "command_compression", "command_compression", "compression ratio of commands", "{:.3g}", high=repetitive
        ),
        _Level(
            "observation_compression",
            "observation_compression",
            "compression ratio of observations",
            "{:.3g}",
            high=repetitive,
        ),
        _Level(
            "role_confusion",
            "role_confusion",
            "turns that imitate the environment",
            "{:.0%}",
            high=settings.max_role_confusion,
        ),
    ]


def _level_reason(level: _Level, rows: Sequence[Row], settings: CollapseConfig) -> str | None:
    # Check the bound first: this reads the last rows only, and few steps are beyond the bound.
    last = list(islice((row[level.key] for row in reversed(rows) if _is_number(row.get(level.key))), settings.window))
    if len(last) < settings.window or not level.is_beyond(math.fsum(last) / len(last)):
        return None
    kept, (means,) = _window_means(rows, settings.window, level.key)
    if len(means) < 2:
        return None
    best = int(means[:-1].argmax() if level.low is not None else means[:-1].argmin())
    if settings.change > 0 and not level.is_worse(means[-1], means[best], settings.change):
        return None
    now, before = (level.figure.format(means[at]) for at in (-1, best))
    return f"{level.what} {now} {_span(kept, -1, settings)}, {before} {_span(kept, best, settings)}"


def _easy_rollouts(rows: Sequence[Row], settings: CollapseConfig) -> str | None:
    kept, (rewards, env_ces) = _window_means(rows, settings.window, "train/reward", "train/policy_env_ce")
    if len(rewards) < 2:
        return None
    peak = int(rewards[:-1].argmax())
    lost = rewards[peak] >= settings.min_peak_reward and rewards[-1] < settings.min_reward_kept * rewards[peak]
    if not lost or not (env_ces[-1] * settings.change < env_ces[peak]):
        return None
    return (
        f"reward {rewards[-1]:.3g} and on-policy env-CE {env_ces[-1]:.3g} {_span(kept, -1, settings)}, "
        f"{rewards[peak]:.3g} and {env_ces[peak]:.3g} {_span(kept, peak, settings)}"
    )


def _ood(row: Row, settings: CollapseConfig) -> str | None:
    ood, ood_start, heldout, heldout_start = (
        row.get(key) for key in ("ood/env_ce", "ood/env_ce_start", "heldout/env_ce", "heldout/env_ce_start")
    )
    if ood is None or ood_start is None or heldout is None or heldout_start is None:
        return None
    if not ood > settings.max_ood_rise * ood_start or heldout < heldout_start:
        return None
    return (
        f"out-of-distribution env-CE {ood:.3g} nats, {ood_start:.3g} at the start, "
        f"and held-out {heldout:.3g}, {heldout_start:.3g} at the start"
    )


def _window_means(rows: Sequence[Row], window: int, *keys: str) -> tuple[list[Row], tuple[NDArray[np.float64], ...]]:
    """Return the rows that have all of `keys`, and per key the means over every window of these rows."""
    kept = [row for row in rows if all(_is_number(row.get(key)) for key in keys)]
    if len(kept) < window:
        return kept, tuple(np.empty(0) for _ in keys)
    series = (np.array([row[key] for row in kept], dtype=np.float64) for key in keys)
    return kept, tuple(sliding_window_view(values, window).mean(axis=1) for values in series)


def _is_number(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _span(kept: Sequence[Row], number: int, settings: CollapseConfig) -> str:
    """Return the steps of a window as text, given its index in the means of `_window_means`; -1 is the last window."""
    begin = number if number >= 0 else len(kept) - settings.window
    first, last = kept[begin]["step"], kept[begin + settings.window - 1]["step"]
    return f"at step {last}" if first == last else f"over steps {first}-{last}"
