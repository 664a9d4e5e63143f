"""Output of `env check`. Text from the environment is data: control characters are made visible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from echo_cli.cli.display.tables import colours_of_stdout, new_table, print_table
from echo_cli.cli.display.transcript import transcript
from echo_cli.environments.grading.grade import criteria_in
from echo_cli.environments.protocol import JsonObject
from echo_cli.environments.tool_text import schema_type, short_json, tool_line
from echo_cli.evaluation.environment_figures import EnvironmentFigures
from echo_cli.evaluation.environment_verdicts import verdicts_of
from echo_cli.rollouts.environment_check import CheckReport
from echo_cli.rollouts.environment_findings import Finding
from echo_cli.terminal import put
from echo_cli.text import counted

if TYPE_CHECKING:
    from echo_cli.training.model_check import ModelReport

_SCRIPTS = {
    "actions": "the actions that solve the task",
    "explorer": "lines of environment.explorer",
    "random": "random lines that fit the action schema",
}


def print_check(report: CheckReport) -> None:
    """Print the environment, one of its episodes, and the findings."""
    put(f"environment: {report.description.name}")
    put(f"sessions: {'any number' if report.sessions is None else report.sessions}")
    caps = report.limits
    put(f"caps: action {caps.action_tokens}, output {caps.output_tokens}, episode {caps.episode_tokens} tokens")
    put(f"tasks: {', '.join(f'{count} {split}' for split, count in report.tasks.items())}", *report.description.notices)
    described = report.description
    actions = map(tool_line, described.tools) if described.tools else schema_lines(described.action_schema)
    for name, lines in (
        ("tools" if described.tools else "action", actions),
        ("observation", schema_lines(described.observation_schema)),
    ):
        put(f"{name}:", *(f"  {line}" for line in lines))
    coloured = colours_of_stdout() is not None
    put("", f"played: {_SCRIPTS[report.script]}", *transcript(report.trajectory, coloured=coloured))
    _print_tokens(report)
    of_steps = ", ".join(map(_reward, report.step_rewards)) or "none"
    put(f"step rewards: {of_steps}; episode reward: {_reward(report.trajectory.reward)}")
    if criteria := criteria_in(report.trajectory.meta):
        put(f"criteria: {', '.join(f'{name} {_reward(value)}' for name, value in criteria.items())}")
    step = "no step" if report.step_seconds is None else f"step {report.step_seconds * 1000:.1f} ms (median)"
    put(f"time: reset {report.reset_seconds * 1000:.1f} ms, {step}")
    faults = ", ".join(f"{count} {name}" for name, count in report.faults.items() if count)
    put(f"faults: {faults or 'none'}")
    _print_findings(report.findings)


def print_figures(figures: EnvironmentFigures) -> None:
    """Print a line for each verdict on the environment."""
    played = f"{counted(figures.plays, 'play')} of {counted(figures.tasks, 'task')}"
    put("", f"judged by {played}, {figures.output_bytes} bytes of env_output:")
    put(*(f"  {verdict.name}: {verdict.finding}: {verdict.meaning}" for verdict in verdicts_of(figures)))


def print_model(report: ModelReport, name: str) -> None:
    """Print what a model wrote in its first rollouts, the shares that decide whether it learns, and the findings."""
    firsts = {rollout.task_id: rollout for rollout in reversed(report.rollouts)}
    put("", f"played by the model {name}, a rollout of each task:")
    coloured = colours_of_stdout() is not None
    for rollout in reversed(firsts.values()):
        put(*transcript(rollout, coloured=coloured))
    shares = (
        f"{_share(report.signals[key])} {words}"
        for key, words in (
            ("valid_action_fraction", "can be run"),
            ("malformed_fraction", "malformed"),
            ("no_action_fraction", "empty"),
        )
    )
    length = report.signals["action_length"] or 0.0
    put(f"actions: {', '.join(shares)}; {length:.1f} tokens on average, at most {report.most_action_tokens}")
    ends = ", ".join(f"{count} {reason}" for reason, count in report.stops.items())
    put(f"rollouts: {len(report.rollouts)}; {_share(report.signals['capped_fraction'])} end at a cap ({ends})")
    put(f"observed: {counted(report.observed_tokens, 'token')} of env_output")
    contrast = report.signals.get("zero_advantage_fraction")
    without = "" if contrast is None else f"; {_share(contrast)} of rollouts without reward contrast"
    put(f"reward: {_reward(report.signals.get('reward'))} on average{without}")
    _print_findings(report.findings)


def _print_findings(findings: Sequence[Finding]) -> None:
    if not findings:
        put("", "no problems found")
    for finding in findings:
        put("", f"warning: {finding.message}", f"  tip: {finding.tip}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def schema_lines(schema: JsonObject) -> Iterator[str]:
    """Yield a line per field of a JSON schema: name, type, and "required" or the default."""
    fields, required = schema.get("properties"), schema.get("required")
    if not isinstance(fields, dict) or not fields:
        yield "no fields listed"
        return
    for name, field in fields.items():
        line = f"{name}: {schema_type(field)}"
        if isinstance(required, list) and name in required:
            line += ", required"
        elif isinstance(field, dict) and "default" in field:
            line += f" = {short_json(field['default'])}"
        yield line


def _print_tokens(report: CheckReport) -> None:
    tokens = report.tokens
    total = sum(tokens.values())
    table = new_table("", "tokens", "share")
    for (role, channel), count in tokens.items():
        name = role.name.lower() if channel is None else f"{role.name.lower()} {channel}"
        table.add_row(name, str(count), f"{count / total:.1%}")
    print_table(table)


def _reward(reward: float | None) -> str:
    return "null" if reward is None else f"{reward:g}"
