"""What a held-out evaluation found, as records with intervals, one JSON object, or rows of a table in long format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from echo_cli.evaluation.measures import Measures
from echo_cli.evaluation.pass_at_k import OutcomeComparison
from echo_cli.statistics import Estimate
from echo_cli.text import escape_unprintable

HELDOUT, OOD = "heldout", "ood"
INITIAL, POLICY = "initial", "policy"
HEADLINE = "headline"
MEASURES = ("env_ce", "env_bits_per_byte", "token_accuracy", "calibration_error")
CSV_COLUMNS = ("run", "step", "pool", "model", "group", "key", "measure", "value", "low", "high", "tokens")


@dataclass(frozen=True)
class Measured:
    """A model's measures of one group of a pool's tokens; `step` is None for what is no checkpoint of a run."""

    run: str
    step: int | None
    pool: str
    model: str
    group: str
    key: str
    measures: Measures


@dataclass(frozen=True)
class Passed:
    """pass@k of a policy on the tasks of a pool."""

    run: str
    step: int | None
    pool: str
    model: str
    k: int
    estimate: Estimate
    tasks: int
    rollouts: int


@dataclass(frozen=True)
class Reliability:
    """A policy's calibration bins over the headline's tokens of a pool: mean confidence, accuracy, tokens."""

    run: str
    step: int | None
    pool: str
    model: str
    bins: Sequence[tuple[float, float, int]]


@dataclass(frozen=True)
class PolicyReport:
    """All that is measured of one policy."""

    measured: Sequence[Measured]
    passed: Sequence[Passed]
    reliability: Sequence[Reliability]


@dataclass(frozen=True)
class TaskRow:
    """A task under two policies: solved of `rollouts`."""

    pool: str
    task_id: str
    family: str
    rollouts: int
    solved_before: int
    solved_after: int


@dataclass(frozen=True)
class Evaluation:
    """Checkpoints of a run beside its start. With several, all but the headlines and pass@k are of the last, `step`."""

    run: str
    step: int
    steps: Sequence[int]
    novel_pairs: Mapping[str, int]
    """By pool, in the order of the table's columns."""
    before: PolicyReport
    after: Sequence[PolicyReport]
    """One a checkpoint, ascending."""
    baselines: Sequence[Measured]
    tasks: Sequence[TaskRow]
    notes: Sequence[str]
    readout: Mapping[str, Any]

    @property
    def measured(self) -> list[Measured]:
        return [entry for report in (self.before, *self.after) for entry in report.measured] + list(self.baselines)

    @property
    def passed(self) -> list[Passed]:
        return [entry for report in (self.before, *self.after) for entry in report.passed]

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `before` and `after` hold plain values, `measurements` everything with its interval."""
        return {
            "run": self.run,
            "step": self.step,
            "checkpoints": list(self.steps),
            "before": _plain(self.before, self.novel_pairs),
            "after": _plain(self.after[-1], self.novel_pairs),
            "measurements": [_measured_json(entry) for entry in self.measured],
            "pass_at_k": [asdict(entry) for entry in self.passed],
            "reliability": [asdict(entry) for report in (self.before, self.after[-1]) for entry in report.reliability],
            "tasks": [asdict(task) for task in self.tasks],
            "notes": list(self.notes),
            "readout": self.readout,
        }


@dataclass(frozen=True)
class Difference:
    """Run B less run A on one pool: env-CE over the same tokens, tasks over the same tasks."""

    pool: str
    novel_pairs: int
    env_ce: Estimate | None
    tasks: OutcomeComparison | None


@dataclass(frozen=True)
class Comparison:
    """Two runs over the pairs that neither had executed. `reports` and `labels` are those of A and of B."""

    labels: tuple[str, str]
    steps: tuple[int, int]
    reports: tuple[PolicyReport, PolicyReport]
    differences: Sequence[Difference]
    notes: Sequence[str] = ()

    @property
    def measured(self) -> list[Measured]:
        return [entry for report in self.reports for entry in report.measured]

    @property
    def passed(self) -> list[Passed]:
        return [entry for report in self.reports for entry in report.passed]

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `differences` is what the comparison says, `measurements` what it rests on."""
        return {
            "runs": list(self.labels),
            "steps": list(self.steps),
            "differences": [asdict(entry) for entry in self.differences],
            "measurements": [_measured_json(entry) for entry in self.measured],
            "pass_at_k": [asdict(entry) for entry in self.passed],
            "reliability": [asdict(entry) for report in self.reports for entry in report.reliability],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class ModelEntry:
    """A model measured without a run. Its records have its label as their `model`, and its path as their `run`."""

    label: str
    path: str
    kind: str
    device: str
    """Where it ran, in which precision, and why."""
    vocab_size: int
    same_tokens: bool
    """It cuts the text of every pool into the tokens of the first model: what is measured a token compares."""
    report: PolicyReport


@dataclass(frozen=True)
class ModelDifference:
    """A model less the first one on a pool, paired by trajectory; env-CE is None where their tokens differ."""

    pool: str
    model: str
    env_bits_per_byte: Estimate | None
    env_ce: Estimate | None


@dataclass(frozen=True)
class ModelEvaluation:
    """Models over the same text of frozen pools. The differences refer to the first, and baselines have its tokens."""

    models: Sequence[ModelEntry]
    fit_pool: str | None
    """The pool whose pairs are left out of the headline, and fit the baselines."""
    pairs: Mapping[str, int]
    """By pool, in the order of the table's columns."""
    novel_pairs: Mapping[str, int]
    """Those that the headline is over: all of them without `fit_pool`."""
    differences: Sequence[ModelDifference]
    baselines: Sequence[Measured]
    notes: Sequence[str]
    readout: Mapping[str, Any]

    @property
    def measured(self) -> list[Measured]:
        return [entry for model in self.models for entry in model.report.measured] + list(self.baselines)

    @property
    def passed(self) -> list[Passed]:
        """None: tasks need an environment."""
        return []

    @property
    def same_tokens(self) -> bool:
        """Whether nats per token compare over all the models."""
        return all(model.same_tokens for model in self.models)

    def to_json(self) -> dict[str, Any]:
        """A JSON object: `models` hold plain values, `measurements` everything with its interval."""
        return {
            "models": [
                {
                    **{"model": entry.label, "path": entry.path, "kind": entry.kind, "device": entry.device},
                    **{"vocab_size": entry.vocab_size, "same_tokens": entry.same_tokens},
                    **_plain(entry.report, self.novel_pairs),
                }
                for entry in self.models
            ],
            "fit_pool": self.fit_pool,
            "pairs": dict(self.pairs),
            "novel_pairs": dict(self.novel_pairs),
            "differences": [asdict(entry) for entry in self.differences],
            "measurements": [_measured_json(entry) for entry in self.measured],
            "reliability": [asdict(entry) for model in self.models for entry in model.report.reliability],
            "notes": list(self.notes),
            "readout": self.readout,
        }


Found = Evaluation | Comparison | ModelEvaluation


def pool_title(pool: str) -> str:
    """How a pool is called in tables and pictures."""
    return {HELDOUT: "held-out", OOD: "OOD"}.get(pool, pool)


def model_title(model: str, step: int | None) -> str:
    """How a model is called in tables and pictures."""
    return {INITIAL: "initial policy", POLICY: f"step {step}"}.get(model, model)


def _measured_json(entry: Measured) -> dict[str, Any]:
    measures = entry.measures
    return {
        **{name: getattr(entry, name) for name in ("run", "step", "pool", "model", "group", "key")},
        **{"tokens": measures.tokens, "bytes": measures.bytes, "trajectories": measures.trajectories},
        **{name: estimate.to_json() for name, estimate in measures.estimates.items()},
    }


def csv_rows(found: Found) -> Iterator[tuple[Any, ...]]:
    """The rows under `CSV_COLUMNS`: a measure of a group a row. `tokens` is empty where tasks are counted.

    The run's name and the key of a group are data, and may meet a terminal: what is not printable is escaped.
    """
    for entry in found.measured:
        for name, estimate in entry.measures.estimates.items():
            yield (
                *(
                    escape_unprintable(entry.run),
                    entry.step,
                    entry.pool,
                    entry.model,
                    entry.group,
                    escape_unprintable(entry.key),
                    name,
                ),
                *(estimate.value, estimate.low, estimate.high, entry.measures.tokens),
            )
    for passed in found.passed:
        yield (
            *(
                escape_unprintable(passed.run),
                passed.step,
                passed.pool,
                passed.model,
                "tasks",
                "",
                f"pass_at_{passed.k}",
            ),
            *(passed.estimate.value, passed.estimate.low, passed.estimate.high, None),
        )
    if isinstance(found, ModelEvaluation):
        for less in found.differences:
            models = f"{less.model} - {found.models[0].label}"
            for name, paired in (("env_bits_per_byte", less.env_bits_per_byte), ("env_ce", less.env_ce)):
                if paired is not None:
                    yield (
                        *(escape_unprintable(models), None, less.pool, "difference", HEADLINE, "", name),
                        *(paired.value, paired.low, paired.high, None),
                    )
    if isinstance(found, Comparison):
        for difference in found.differences:
            where = (" - ".join(reversed(found.labels)), None, difference.pool, "difference")
            if (ce := difference.env_ce) is not None:
                yield (*where, HEADLINE, "", "env_ce", ce.value, ce.low, ce.high, None)
            if difference.tasks is not None:
                rate = difference.tasks.difference
                yield (*where, "tasks", "", "pass_at_1", rate.value, rate.low, rate.high, None)
                yield (*where, "tasks", "", "mcnemar_p", difference.tasks.p_value, None, None, None)


def _plain(report: PolicyReport, novel_pairs: Mapping[str, int]) -> dict[str, float | None]:
    """The headlines of a policy as plain values, under the names of the run's metrics."""
    plain: dict[str, float | None] = {}
    for pool, pairs in novel_pairs.items():
        mine = [entry for entry in report.measured if entry.pool == pool]
        found = next((entry.measures for entry in mine if entry.group == HEADLINE), None)
        plain |= {f"{pool}/{name}": found.estimates[name].value if found else None for name in MEASURES}
        seen = next((entry.measures for entry in mine if (entry.group, entry.key) == ("pair", "seen")), None)
        plain[f"{pool}/env_ce_seen"] = seen.estimates["env_ce"].value if seen else None
        plain[f"{pool}/novel_pairs"] = pairs
        plain |= {f"{pool}/pass_at_{entry.k}": entry.estimate.value for entry in report.passed if entry.pool == pool}
    return plain
