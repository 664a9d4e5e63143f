"""Result of a held-out evaluation: one record with intervals, its JSON object, and its CSV rows in long format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Literal

from echo_cli.evaluation.measures import Measures
from echo_cli.evaluation.pass_at_k import OutcomeComparison
from echo_cli.statistics import Estimate
from echo_cli.text import counted, escape_unprintable

HELDOUT, OOD = "heldout", "ood"
INITIAL, POLICY = "initial", "policy"
HEADLINE, LINES = "headline", "lines"
MEASURES = ("env_ce", "env_bits_per_byte", "token_accuracy", "calibration_error")
CSV_COLUMNS = ("run", "step", "pool", "model", "group", "key", "measure", "value", "low", "high", "tokens")

_JSON_KEYS = {
    "run": "run step checkpoints before after measurements pass_at_k mean_reward criteria reliability tasks notes "
    "readout",
    "runs": "runs steps differences measurements pass_at_k mean_reward criteria reliability notes",
    "models": "models fit_pool pairs novel_pairs differences measurements reliability notes readout",
}
"""Keys of the JSON object, by kind of evaluation."""
_DIFFERENCE_KEYS = {"run": "", "runs": "pool novel_pairs env_ce tasks", "models": "pool model env_bits_per_byte env_ce"}
"""Keys of an entry of `differences`, by kind of evaluation."""


@dataclass(frozen=True)
class Measured:
    """Measures of one group of a pool's tokens."""

    pool: str
    group: str
    key: str
    measures: Measures


@dataclass(frozen=True)
class Passed:
    """pass@k on the tasks of a pool."""

    pool: str
    k: int
    estimate: Estimate
    tasks: int
    """Number of tasks."""
    clusters: int
    """Number of clusters of tasks with one solution."""
    rollouts: int
    """Number of rollouts per task."""


@dataclass(frozen=True)
class LoadedModel:
    """Kind, device and vocabulary of a model that was measured without a run."""

    kind: str
    device: str
    """Device and precision, and why they were chosen."""
    vocab_size: int
    same_tokens: bool
    """Whether the model's tokens of every pool equal the first model's, so that per-token figures are comparable."""


@dataclass(frozen=True)
class ModelReport:
    """All measures of one model, a policy or a baseline."""

    run: str
    """Name of the run; for a model without a run, its path."""
    step: int | None
    """Step of the checkpoint, 0 before training; None for models without a run and for baselines."""
    model: str
    """Label in the report."""
    measured: Sequence[Measured]
    passed: Sequence[Passed] = ()
    reliability: Mapping[str, Sequence[tuple[float, float, int]]] = field(default_factory=dict)
    """Calibration bins of the headline, by pool: mean confidence, accuracy, number of tokens."""
    loaded: LoadedModel | None = None
    rewards: Mapping[str, Estimate] = field(default_factory=dict)
    """Mean reward on the tasks of each pool."""
    criteria: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """Means of a grader's criteria on the tasks of each pool, as `criterion_<name>`."""

    @property
    def same_tokens(self) -> bool:
        """Whether per-token figures are comparable with the first model's."""
        return self.loaded is None or self.loaded.same_tokens

    @property
    def title(self) -> str:
        """Name in tables and figures."""
        return {INITIAL: "initial policy", POLICY: f"step {self.step}"}.get(self.model, self.model)

    def group(self, pool: str, group: str) -> dict[str, Measures]:
        """Return the measures of a group by key; models measured over the same text have the same keys."""
        return {entry.key: entry.measures for entry in self.measured if (entry.pool, entry.group) == (pool, group)}

    def headline(self, pool: str) -> Measures | None:
        """Return the headline of a pool; None if none of its pairs is novel."""
        return self.group(pool, HEADLINE).get("")

    def estimate(self, pool: str, name: str) -> Estimate | None:
        """Return a measure of the headline by name; None if the model does not have it."""
        headline = self.headline(pool)
        return headline.estimates.get(name) if headline else None

    def seen_env_ce(self, pool: str) -> Estimate | None:
        """Return env-CE over the seen pairs of a pool without novel pairs; None for other pools."""
        seen = self.group(pool, "pair").get("seen")
        return None if seen is None or self.headline(pool) is not None else seen.estimates["env_ce"]

    def pass_at(self, pool: str, k: int) -> Estimate | None:
        """Return pass@k on the tasks of a pool; None if no tasks were played."""
        return next((entry.estimate for entry in self.passed if (entry.pool, entry.k) == (pool, k)), None)

    def at(self, pool: str) -> dict[str, Any]:
        """Return the leading keys of a JSON record of this model on a pool."""
        return {"run": self.run, "step": self.step, "pool": pool, "model": self.model}

    def plain(self, novel_pairs: Mapping[str, int]) -> dict[str, float | None]:
        """Return the headlines without intervals, under the run's metric names."""
        values: dict[str, float | None] = {}
        for pool, pairs in novel_pairs.items():
            headline, seen = self.headline(pool), self.group(pool, "pair").get("seen")
            known = headline.estimates if headline else {}  # a Tinker service tells no accuracy
            values |= {f"{pool}/{name}": known[name].value if name in known else None for name in MEASURES}
            values[f"{pool}/env_ce_seen"] = seen.estimates["env_ce"].value if seen else None
            values[f"{pool}/novel_pairs"] = pairs
            values |= self._by_lines(pool)
            values |= {f"{pool}/pass_at_{entry.k}": entry.estimate.value for entry in self.passed if entry.pool == pool}
            if pool in self.rewards:
                values[f"{pool}/mean_reward"] = self.rewards[pool].value
            values |= {f"{pool}/{name}": of.value for name, of in self.criteria.get(pool, {}).items()}
        return values

    def _by_lines(self, pool: str) -> dict[str, float | None]:
        """Return env-CE and sizes of the headline's two parts, under the run's metric names."""
        values: dict[str, float | None] = {}
        for key in ("shown", "unshown"):
            part = self.group(pool, LINES).get(key)
            values[f"{pool}/env_ce_{key}"] = part.estimates["env_ce"].value if part else None
            values[f"{pool}/pairs_{key}"], values[f"{pool}/bytes_{key}"] = (part.pairs, part.bytes) if part else (0, 0)
        return values


@dataclass(frozen=True)
class Difference:
    """A policy's measures minus the first policy's on a pool, paired by trajectory or task.

    A difference is None if the two policies are not comparable in the measure.
    """

    pool: str
    model: str
    env_bits_per_byte: Estimate | None = None
    env_ce: Estimate | None = None
    tasks: OutcomeComparison | None = None


@dataclass(frozen=True)
class TaskRow:
    """Solved rollouts of a task under two policies, out of `rollouts` each."""

    pool: str
    task_id: str
    family: str
    rollouts: int
    solved_before: int
    solved_after: int


@dataclass(frozen=True)
class Evaluation:
    """Measures of policies and baselines over the same text of frozen pools."""

    kind: Literal["run", "runs", "models"]
    """run: the initial policy and checkpoints of a run; runs: one checkpoint of run A and one of run B; models: models
    without a run."""
    policies: Sequence[ModelReport]
    """Reference policy first, then a run's checkpoints in ascending order. With several checkpoints, all but the last
    have headlines and pass@k only."""
    novel_pairs: Mapping[str, int]
    """Number of pairs in the headline, by pool, in the order of table columns."""
    notes: Sequence[str]
    baselines: Sequence[ModelReport] = ()
    differences: Sequence[Difference] = ()
    tasks: Sequence[TaskRow] = ()
    readout: Mapping[str, Any] | None = None
    pairs: Mapping[str, int] = field(default_factory=dict)
    """Number of all pairs, by pool; empty unless `kind` is models."""
    fit_pool: str | None = None
    """Pool whose pairs fit the baselines and are omitted from the headline; None unless `kind` is models."""

    @property
    def measured(self) -> list[tuple[ModelReport, Measured]]:
        """All entries with their models: policies first, then baselines ordered by pool."""
        baselines = [(model, entry) for model in self.baselines for entry in model.measured]
        return [
            *((policy, entry) for policy in self.policies for entry in policy.measured),
            *((model, entry) for pool in self.novel_pairs for model, entry in baselines if entry.pool == pool),
        ]

    @property
    def passed(self) -> list[tuple[ModelReport, Passed]]:
        return [(policy, entry) for policy in self.policies for entry in policy.passed]

    @property
    def ks(self) -> list[int]:
        """Distinct k of pass@k, ascending."""
        return sorted({entry.k for _, entry in self.passed})

    @property
    def shown(self) -> list[ModelReport]:
        """Policies shown side by side in tables and figures; for a run, the initial policy and the last checkpoint."""
        return [self.policies[0], self.policies[-1]] if self.kind == "run" else list(self.policies)

    @property
    def is_curve(self) -> bool:
        """Whether the evaluation has several checkpoints of a run."""
        return self.kind == "run" and len(self.policies) > 2

    @property
    def same_tokens(self) -> bool:
        """Whether per-token figures are comparable across all policies."""
        return all(policy.same_tokens for policy in self.policies)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object for this `kind`; `measurements` contains every figure with its interval."""
        first, last = self.policies[0], self.policies[-1]
        differences = [{**asdict(less), "novel_pairs": self.novel_pairs[less.pool]} for less in self.differences]
        values = {
            "run": first.run,
            "step": last.step,
            "checkpoints": [policy.step for policy in self.policies[1:]],
            "before": first.plain(self.novel_pairs),
            "after": last.plain(self.novel_pairs),
            "runs": [policy.model for policy in self.policies],
            "steps": [policy.step for policy in self.policies],
            "models": [
                {
                    **{"model": policy.model, "path": policy.run, **(asdict(policy.loaded) if policy.loaded else {})},
                    **policy.plain(self.novel_pairs),
                }
                for policy in self.policies
            ],
            "fit_pool": self.fit_pool,
            "pairs": dict(self.pairs),
            "novel_pairs": dict(self.novel_pairs),
            "differences": [{key: less[key] for key in _DIFFERENCE_KEYS[self.kind].split()} for less in differences],
            "measurements": [_measured_json(model, entry) for model, entry in self.measured],
            "pass_at_k": [{**policy.at(entry.pool), **asdict(entry)} for policy, entry in self.passed],
            "mean_reward": [
                {**policy.at(pool), **estimate.to_json()}
                for policy in self.policies
                for pool, estimate in policy.rewards.items()
            ],
            "criteria": [
                {**policy.at(pool), "criterion": name.removeprefix("criterion_"), **estimate.to_json()}
                for policy in self.policies
                for pool, found in policy.criteria.items()
                for name, estimate in found.items()
            ],
            "reliability": [
                {**policy.at(pool), "bins": list(bins)}
                for policy in self.policies
                for pool, bins in policy.reliability.items()
            ],
            "tasks": [asdict(task) for task in self.tasks],
            "notes": list(self.notes),
            "readout": self.readout,
        }
        return {key: values[key] for key in _JSON_KEYS[self.kind].split()}


def plays_line(who: str, tasks: int, pool: str, rollouts: int) -> str:
    """Return the line that announces that the policy `who` plays a pool's tasks."""
    return f"{who} plays {counted(tasks, f'{pool_title(pool)} task')}, {counted(rollouts, 'rollout')} each"


def pool_title(pool: str) -> str:
    """Return the name of a pool in tables and figures, such as `held-out` or, of one environment, `held-out NAME`."""
    base, _, environment = pool.partition("/")
    return f"{ {HELDOUT: 'held-out', OOD: 'OOD'}.get(base, base) } {environment}".strip()


def csv_rows(found: Evaluation) -> Iterator[tuple[Any, ...]]:
    """Yield rows with `CSV_COLUMNS`, one per measure and group; `tokens` is empty for task measures and differences.

    The run's name and the group's key are data and may be printed on a terminal, so unprintable characters are escaped.
    """
    for model, entry in found.measured:
        where = (escape_unprintable(model.run), model.step, entry.pool, model.model)
        for name, estimate in entry.measures.estimates.items():
            key = escape_unprintable(entry.key)
            yield (*where, entry.group, key, name, *astuple(estimate), entry.measures.tokens)
    for model, passed in found.passed:
        where = (escape_unprintable(model.run), model.step, passed.pool, model.model)
        yield (*where, "tasks", "", f"pass_at_{passed.k}", *astuple(passed.estimate), None)
    for policy in found.policies:
        for pool, estimate in policy.rewards.items():
            where = (escape_unprintable(policy.run), policy.step, pool, policy.model)
            yield (*where, "tasks", "", "mean_reward", *astuple(estimate), None)
            for name, of in policy.criteria.get(pool, {}).items():
                yield (*where, "tasks", "", name, *astuple(of), None)
    for less in found.differences:
        models = escape_unprintable(f"{less.model} - {found.policies[0].model}")
        where = (models, None, less.pool, "difference")
        for name, paired in (("env_bits_per_byte", less.env_bits_per_byte), ("env_ce", less.env_ce)):
            if paired is not None:
                yield (*where, HEADLINE, "", name, *astuple(paired), None)
        if less.tasks is not None:
            yield (*where, "tasks", "", "pass_at_1", *astuple(less.tasks.difference), None)
            yield (*where, "tasks", "", "mcnemar_p", less.tasks.p_value, None, None, None)


def _measured_json(model: ModelReport, entry: Measured) -> dict[str, Any]:
    measures = entry.measures
    return {
        **{**model.at(entry.pool), "group": entry.group, "key": entry.key},
        **{"tokens": measures.tokens, "bytes": measures.bytes, "trajectories": measures.trajectories},
        "pairs": measures.pairs,
        **{name: estimate.to_json() for name, estimate in measures.estimates.items()},
    }
