"""The figures of docs/claims.md: a list for each claim, a table of all arms, the learning rates, and pictures."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from claims.arms import BY_NAME
from claims.comparison import Speed, difference, estimate, shared_places, speed_of
from claims.measured import Measured
from echo_cli.files import write_atomic
from echo_cli.reports.run_figure import plot_curves
from echo_cli.statistics import Estimate
from echo_cli.text import counted

BEGIN, END = "<!-- figures: written by scripts/reproduce-claims -->", "<!-- end of figures -->"

Arms = Mapping[str, Measured]
Rates = Mapping[str, Sequence[Mapping[str, float]]]
"""By arm, `pass_at_1` on the machines of the tuning at each learning rate, `lr`."""

GRPO_ARMS = ("grpo", "grpo-kl", "grpo-hot", "grpo-steps", "grpo-tokens")
PAIRS = (
    ("grpo", "own"),
    ("grpo", "echo"),
    ("grpo-steps", "echo"),
    ("grpo-tokens", "echo"),
    ("grpo-kl", "own"),
    ("grpo-hot", "own"),
    ("own-placebo", "own"),
    ("echo-placebo", "echo"),
    ("grpo", "own-placebo"),
    ("grpo", "echo-placebo"),
    ("homeless-grpo", "homeless-own"),
    ("homeless-grpo", "homeless-echo"),
)
"""Arms that are compared, the second with the first."""
PICTURES: Mapping[str, tuple[str, ...]] = {
    "effect": ("grpo", "own", "echo"),
    "placebos": ("grpo", "own-placebo", "own", "echo-placebo", "echo"),
    "false-targets": ("own", "own-shuffled", "own-random", "echo-shuffled", "echo-random"),
    "grpo": GRPO_ARMS,
    "verifier-off": ("env-only", "env-after", "own-after"),
    "lambda": ("own", "own-1", "echo", "echo-30", "echo-300"),
    "base": ("homeless-grpo", "homeless-own", "homeless-echo"),
}


def shown(found: Estimate | None, form: str = "+.2f") -> str:
    """Format value and interval."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.value:{form}} (no interval)"
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def verdict(found: Estimate | None, *, wanted: int) -> str:
    """Return the verdict on a claim that predicts the sign `wanted`."""
    if found is None or not found.excludes_zero:
        return "no difference seen"
    return "holds" if found.value * wanted > 0 else "the opposite holds"


def level_of_grpo(tuned: Rates) -> float:
    """Return the pass@1 that arms are timed to: GRPO's last one at its best rate, on the machines of the tuning."""
    return max(float(row["pass_at_1"]) for row in tuned["grpo"])


def figures(arms: Arms, steps: int, tuned: Rates) -> list[str]:
    """Return the Markdown between the two marks."""
    level = level_of_grpo(tuned)
    places = {place for of in arms.values() for place in of.records}
    machines, seeds = (sorted({getattr(place, name) for place in places}) for name in ("machine", "seed"))
    return [
        f"{steps} steps on machines {', '.join(map(str, machines))} with seeds {', '.join(map(str, seeds))}, on which "
        "no setting was chosen; an arm has the number of runs that is given. Mean and 95 % interval over machines "
        "(Student's t, seeds of a machine averaged), differences paired by machine and seed, over the runs that both "
        "arms have. pass@1 over 4 rollouts of each held-out task; "
        "env-CE in nats/token over the held-out pairs still novel at the end.",
        "",
        *_env_ce(arms),
        *_solved(arms),
        *_steps(arms, level),
        *_verifier_off(arms),
        *_large_lambda(arms),
        "### Every arm",
        "",
        *table(list(arms.values())),
        "",
        "### Learning rates",
        "",
        *rate_table(tuned, {name: BY_NAME[name].label for name in tuned}),
        "",
    ]


def _env_ce(arms: Arms) -> list[str]:
    lines = ["### 1. ECHO lowers held-out env-CE, GRPO alone does not", ""]
    for name in ("grpo", "own", "echo", "own-placebo", "echo-placebo"):
        if name in arms:
            change = estimate(arms[name], "env_ce_change_last")
            seen = change is not None and change.excludes_zero
            word = ("falls" if change.value < 0 else "rises") if seen and change is not None else "no change seen"
            lines.append(f"- {_counted(arms[name])}: relative change {shown(change)}: {word}")
    return [*lines, ""]


def _solved(arms: Arms) -> list[str]:
    lines = ["### 2. ECHO raises held-out pass@1", ""]
    for first, second in _pairs(arms, PAIRS):
        found = difference(first, second, "pass_at_1_last")
        asked, elsewhere = (difference(first, second, f"{family}_last") for family in ("setting", "setting_elsewhere"))
        lines.append(
            f"- {_versus(first, second)}: {shown(found)}: {verdict(found, wanted=1)}; services that training "
            f"asks about {shown(asked)}, others {shown(elsewhere)}"
        )
    return [*lines, ""]


def _steps(arms: Arms, level: float) -> list[str]:
    lines = [
        "### 3. ECHO learns in fewer steps",
        "",
        f"Steps to a held-out pass@1 of {level:.2f}, which GRPO ends at on the machines of the tuning: the geometric "
        "mean of their ratio; and the difference of pass@1 averaged over the steps.",
        "",
    ]
    for first, second in _pairs(arms, PAIRS[:4]):
        found, area = speed_of(first, second, level), difference(first, second, "pass_at_1_mean")
        lines.append(f"- {_versus(first, second)}: {_speed(found)}; mean pass@1 {shown(area)}")
    return [*lines, ""]


def _speed(found: Speed) -> str:
    low, high = found.ratio.low, found.ratio.high
    seen = low is not None and high is not None and not low <= 1 <= high
    word = ("holds" if found.ratio.value < 1 else "the opposite holds") if seen else "no difference seen"
    return (
        f"ratio {shown(found.ratio, '.2f')}: {word}; reached by {found.reached[0]} and {found.reached[1]} of "
        f"{found.runs} runs; sign test over machines p = {found.sign_p:.3f}"
    )


def _verifier_off(arms: Arms) -> list[str]:
    lines = ["### 4. With the verifier off, env-CE alone changes the share of tasks solved", ""]
    for name in ("env-only", "env-after", "own-after"):
        if name in arms:
            change = estimate(arms[name], "pass_at_1_change")
            before = estimate(arms[name], "pass_at_1_before")
            lines.append(
                f"- {_counted(arms[name])}: from {shown(before, '.2f')}, change {shown(change)}: "
                f"{verdict(change, wanted=1)}; relative change of env-CE "
                f"{shown(estimate(arms[name], 'env_ce_change_last'))}"
            )
    return [*lines, ""]


def _large_lambda(arms: Arms) -> list[str]:
    lines = ["### 5. Too large a λ collapses", ""]
    for name in ("own", "own-1", "echo", "echo-30", "echo-300"):
        if name in arms:
            of = arms[name]
            warned = sum(bool(record.alarms) for record in of.records.values())
            lines.append(
                f"- {of.arm.label}: last pass@1 {shown(estimate(of, 'pass_at_1_last'), '.2f')}; the detector warned in "
                f"{warned} of {len(of.records)} runs"
            )
    return [*lines, ""]


def _pairs(arms: Arms, names: Sequence[tuple[str, str]]) -> list[tuple[Measured, Measured]]:
    """Return the pairs of arms that have runs at the same places."""
    pairs = [(arms[first], arms[second]) for first, second in names if first in arms and second in arms]
    return [(first, second) for first, second in pairs if shared_places(first, second)]


def _counted(of: Measured) -> str:
    return f"{of.arm.label} ({counted(len(of.records), 'run')})"


def _versus(first: Measured, second: Measured) -> str:
    pairs = counted(len(shared_places(first, second)), "pair")
    return f"{second.arm.label} against {first.arm.label} ({pairs} of runs)"


COLUMNS: Mapping[str, tuple[str, str]] = {
    "env_ce_start_last": ("env-CE before", ".2f"),
    "env_ce_last": ("env-CE last", ".2f"),
    "ood_env_ce_last": ("OOD env-CE last", ".2f"),
    "pass_at_1_before": ("pass@1 before", ".2f"),
    "pass_at_1_last": ("pass@1 last", ".2f"),
    "setting_last": ("asked services", ".2f"),
    "setting_elsewhere_last": ("other services", ".2f"),
    "pass_at_1_mean": ("pass@1 over the steps", ".2f"),
}
FIGURES = (*COLUMNS, "env_ce_change_last", "pass_at_1_change")
"""Figures of a run that the page needs."""


def table(arms: Sequence[Measured], columns: Mapping[str, tuple[str, str]] = COLUMNS) -> list[str]:
    """Return the Markdown table of all arms: mean and half of the interval over machines.

    Args:
        columns: title and format of each figure, by its name.
    """
    lines = [
        f"| arm | runs | {' | '.join(title for title, _ in columns.values())} |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for of in arms:
        cells = []
        for name, (_, form) in columns.items():
            found = estimate(of, name)
            half = "" if found is None or found.high is None else f" ± {found.high - found.value:{form}}"
            cells.append("-" if found is None else f"{found.value:{form}}{half}")
        lines.append(f"| {of.arm.label} | {len(of.records)} | {' | '.join(cells)} |")
    return lines


def rate_table(tuned: Rates, labels: Mapping[str, str]) -> list[str]:
    """Return the Markdown table of what each arm of `labels` solved at each learning rate."""
    rates = sorted({row["lr"] for rows in tuned.values() for row in rows})
    lines = [
        f"| held-out pass@1 at lr | {' | '.join(f'{rate:g}' for rate in rates)} |",
        "|---" * (1 + len(rates)) + "|",
    ]
    for name, label in labels.items():
        rows = tuned[name]
        of = {row["lr"]: row["pass_at_1"] for row in rows}
        best = max(of.values())
        cells = [
            "-" if rate not in of else f"**{of[rate]:.2f}**" if of[rate] == best else f"{of[rate]:.2f}"
            for rate in rates
        ]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def write_docs(docs: Path, arms: Arms, text: Sequence[str]) -> None:
    """Write the figures into claims.md, whose other text stays, and the pictures beside it."""
    (docs / "claims").mkdir(parents=True, exist_ok=True)
    pictures = []
    for name, names in PICTURES.items():
        if not arms.keys() >= set(names):
            continue
        shown_arms = [arms[each] for each in names]
        groups = [(of.arm.label, [record.curve for record in of.records.values()]) for of in shown_arms]
        with tempfile.TemporaryDirectory() as folder:
            shutil.copyfile(plot_curves(groups, Path(folder)).png, docs / "claims" / f"{name}.png")
        pictures += [f"![{'; '.join(label for label, _ in groups)}](claims/{name}.png)", ""]
    page = docs / "claims.md"
    before = page.read_text(encoding="utf-8") if page.exists() else f"# The paper's claims\n\n{BEGIN}\n{END}\n"
    head, _, rest = before.partition(BEGIN)
    write_atomic(page, "\n".join([head + BEGIN, "", *text, *pictures, END + rest.partition(END)[2]]).encode())
