"""Printing for `inspect`. Text from a model or an environment is data: control characters are made visible."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from echo_cli.cli.display.tables import colours_of_stdout, new_table, number, print_table, width_of_stdout
from echo_cli.cli.display.token_strip import BLOCKS, DIGITS, legend
from echo_cli.cli.display.transcript import heading, heat_transcript, transcript
from echo_cli.evaluation.token_losses import TokenLosses
from echo_cli.reports.episode_view import EpisodeView, Group
from echo_cli.terminal import joined, put
from echo_cli.text import counted, escape_unprintable
from echo_cli.traces.inspection.account import UNNAMED, Amount, Inspection
from echo_cli.traces.inspection.boundaries import Straddling
from echo_cli.traces.inspection.duplicates import Duplicates, Repetition
from echo_cli.traces.inspection.outputs import OutputSurvey

_CHANNELS = 12
"""Maximum number of channels listed per role."""
_FIGURES = 50
"""Width reserved for the figures in a row with two texts, columns."""
_LEAST_CHARS, _MOST_CHARS = 12, 48
"""Minimum and maximum length of a text in a row, characters, for any terminal width."""
_PIPED_WIDTH = 100
"""Assumed width of the terminal if stdout is not a terminal, columns."""


def print_inspection(inspection: Inspection, *, place: str, tokens: str, boundaries: str) -> None:
    """Print the figures of all episodes.

    Args:
        place: the inspected path.
        tokens: description of the counted tokens.
        boundaries: name of the tokenizer that the boundaries refer to.
    """
    rewards = inspection.rewards
    count = counted(inspection.trajectories, "trajectory", "trajectories")
    put(f"{place}: {count}, {counted(inspection.outputs.turns, 'turn')}")
    put(f"sources: {_listed(inspection.sources)}; stop reasons: {_listed(inspection.stop_reasons)}")
    if rewards.scored:
        bounds = f"{rewards.lowest:g} to {rewards.highest:g}"
        put(f"rewards: {rewards.scored} scored, mean {number(rewards.mean)} ({bounds}); {rewards.unscored} without")
    else:
        put("rewards: none")
    if inspection.world_model_only:
        put(f"env term only: {inspection.world_model_only} of {inspection.trajectories} trajectories")
    _print_account(inspection, tokens)
    _print_straddling(inspection.straddling, boundaries)
    _print_outputs(inspection.outputs)
    _print_duplicates(inspection.duplicates)


def print_episode(view: EpisodeView, *, place: str) -> None:
    """Print the transcript of an episode with its reward and advantage and, with policies, its token losses."""
    at_step = "" if view.step is None else f", step {view.step}"
    put(f"{place}: episode {view.number}{at_step}, {counted(len(view.trace.turns), 'turn')}")
    _print_group(view.group)
    if view.note:
        put(f"note: {view.note}")
    if not view.heats:
        put("", *transcript(view.trace, coloured=colours_of_stdout() is not None, width=width_of_stdout()))
        return
    colours, ramp = colours_of_stdout(), _ramp()
    heats: dict[str, Sequence[TokenLosses]] = {joined(name): heats for name, heats in view.heats.items()}
    lines = heat_transcript(heats, colours=colours, width=width_of_stdout() or _PIPED_WIDTH, ramp=ramp)
    put("", heading(view.trace), *lines, "", legend(ramp, colours))
    table = new_table("nats/token", "tokens", *heats)
    found = [view.by_role(name) for name in view.heats]
    for role, nats in found[0].items():
        table.add_row(role, str(nats.tokens), *(number(of[role].nats_per_token) for of in found))
    print_table(table)


def _print_account(inspection: Inspection, tokens: str) -> None:
    account = inspection.account
    table = new_table("", "segments", "bytes", "share", "tokens", "share")

    def add(name: str, amount: Amount) -> None:
        shares = _percent(amount.bytes_share), _percent(amount.tokens_share)
        table.add_row(name, str(amount.segments), str(amount.bytes), shares[0], str(amount.tokens), shares[1])

    for role, amount in account.roles.items():
        add(role, amount)
        channels = {} if amount.channels.keys() == {UNNAMED} else amount.channels
        for channel, part in list(channels.items())[:_CHANNELS]:
            add(f"  {channel}", part)
        if (left := len(amount.channels) - _CHANNELS) > 0:
            table.add_row(f"  and {left} more")
    print_table(table)
    put(f"tokens: {tokens}")
    put(
        f"plain RL discards {_percent(account.discarded_share)} of the learnable tokens: {account.discarded_tokens} "
        f"of {counted(account.learnable_tokens, 'token')} of action, env_output and warning"
    )


def _print_straddling(found: Straddling, boundaries: str) -> None:
    put(
        "",
        f"role boundaries inside a token if the whole text is tokenized at once ({boundaries}): "
        f"{found.straddling} of {found.boundaries}",
    )
    table = new_table("boundary", "inside", "of", "most common tokens, split at the boundary")
    table.columns[-1].justify = "left"
    for pair in found.pairs:
        examples = ", ".join(f"{_quoted(each.before)}+{_quoted(each.after)} {each.count}" for each in pair.examples)
        names = f"{pair.first} → {pair.second}"
        table.add_row(names, str(pair.straddling), str(pair.boundaries), examples or "-")
    if found.pairs:
        print_table(table)


def _print_outputs(found: OutputSurvey) -> None:
    put(
        "",
        f"outputs: {found.without_output} of {counted(found.turns, 'turn')} printed nothing "
        f"({_percent(found.without_output_share)}), {found.answers_without_output} of them answers; "
        f"{found.blank} printed only white space",
    )
    if found.emptiest:
        put("most often empty: " + ", ".join(f"{_quoted(each.command)} {each.count}" for each in found.emptiest))
    if found.longest:
        table = new_table("longest outputs", "bytes", "tokens", "episode", "turn", "begins")
        table.columns[-1].justify = "left"
        for each in found.longest:
            place = str(each.bytes), str(each.tokens), str(each.episode), str(each.turn)
            table.add_row(_quoted(each.command), *place, _quoted(each.text))
        print_table(table)
    put(f"volatile-looking text: {_percent(found.volatile_share)} of the bytes of env_output")
    if found.volatile:
        table = new_table("", "count", "bytes", "share", "most common")
        table.columns[-1].justify = "left"
        for kind, volatile in found.volatile.items():
            examples = ", ".join(map(_quoted, volatile.examples))
            table.add_row(kind, str(volatile.count), str(volatile.bytes), _percent(volatile.share), examples)
        print_table(table)
        put("--json lists the patterns; text that a pattern in environment.volatile matches is not trained on")


def _print_duplicates(found: Duplicates) -> None:
    table = new_table("duplicates", "copies", "share", "of", "distinct", "most common")
    table.columns[-1].justify = "left"
    for name, repetition in (
        ("(command, output) pairs", found.pairs),
        ("outputs", found.outputs),
        ("whole trajectories", found.trajectories),
    ):
        table.add_row(name, *_repetition(repetition))
    print_table(table)
    other = found.other_outputs
    put(
        f"different outputs: {other.anywhere} of {counted(other.commands, 'command')}; "
        f"{counted(other.same_task, '(task, command) pair')}; "
        f"{counted(other.same_history, '(task, earlier commands, command) triple')}"
    )
    if other.examples:
        put("most often: " + ", ".join(f"{_quoted(each.command)} {each.count}" for each in other.examples))


def _repetition(found: Repetition) -> tuple[str, str, str, str, str]:
    example = f"{_quoted(found.examples[0].text)} {found.examples[0].count}×" if found.examples else "-"
    return str(found.copies), _percent(found.copies_share), str(found.total), str(found.distinct), example


def _print_group(group: Group) -> None:
    if group.rewards:
        rewards = ", ".join("none" if reward is None else f"{reward:g}" for reward in group.rewards)
        put(f"group {group.group_id}: rewards {rewards}")
    if group.advantage is not None:
        note = f"; {group.note}" if group.note else ""
        put(f"advantage: {group.advantage:+.3f} ({group.kind}){note}")
    elif group.note:
        put(group.note)


def _ramp() -> str:
    """Return the block characters, or digits if stdout's encoding lacks the blocks."""
    try:
        BLOCKS.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return DIGITS
    return BLOCKS


def _quoted(text: str) -> str:
    """Return the beginning of a text, quoted on one line with unprintable characters escaped."""
    room = ((width_of_stdout() or _PIPED_WIDTH) - _FIGURES) // 2
    most = min(max(room, _LEAST_CHARS), _MOST_CHARS)
    line = escape_unprintable(text[:most])
    return f"'{line}'" if len(line) <= most and len(text) <= most else f"'{line[: most - 1]}…'"


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
