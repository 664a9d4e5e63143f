"""Transcripts of episodes: a gutter shows the role of each line, and a policy's nats per token if it was scored.

The text is data. Every line has the gutter, so text of an environment or a model cannot pass for a label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.style import Style

from echo_cli.cli.display.tables import number, styled
from echo_cli.cli.display.token_strip import BLOCKS, rows_of, shaded, strip
from echo_cli.evaluation.token_losses import TokenLosses
from echo_cli.terminal import Styled, joined
from echo_cli.text import LINES, escape_unprintable
from echo_cli.trace import Trace, TraceSegment
from echo_cli.trajectory import Role, Segment, Trajectory

_COLOURS = {
    **{Role.CONTEXT: "blue", Role.ACTION: "green"},
    **{Role.ENV_OUTPUT: "yellow", Role.WARNING: "red", Role.END: "magenta"},
}
_LEAST_WIDTH = 16
"""Minimum width of the text, columns, however narrow the terminal."""
_FIGURE = 8
"""Minimum width of a figure in the gutter, columns."""


def transcript(episode: Trajectory | Trace, *, coloured: bool = False, width: int | None = None) -> list[Styled]:
    """Return the lines of the role-marked transcript of `episode`, headed by a line on its outcome.

    Args:
        coloured: whether the gutter is coloured by role; the text itself never is.
        width: columns of the terminal, at which lines wrap behind the gutter. None: no wrapping.
    """
    segments: Sequence[Segment | TraceSegment] = episode.segments
    labels = [label_of(segment) for segment in segments]
    gutter = max(map(cell_len, labels))
    lines = [heading(episode)]
    for label, segment in zip(labels, segments, strict=True):
        for place, line in enumerate(_lines(segment.text, None if width is None else _left(width, gutter))):
            marked = _coloured(f"{set_cell_size(label if place == 0 else '', gutter)} |", segment.role, coloured)
            lines.append(joined(marked, " ", line))
    return lines


def heat_transcript(
    heats: Mapping[str, Sequence[TokenLosses]], *, colours: ColorSystem | None, width: int, ramp: str = BLOCKS
) -> list[Styled]:
    """Return the lines of the transcript of an episode with the nats of its tokens under one or more policies.

    Each segment's label includes the mean nats per token. With colours, the first policy's nats shade the text;
    otherwise they are a strip below each line, as the other policies' nats always are.

    Args:
        heats: token losses by policy name, over the same segments and the same tokens.
        width: columns of the terminal.
        ramp: the nine characters of a strip.
    """
    names, first = list(heats), next(iter(heats.values()))
    labels = [label_of(heat.segment) for heat in first]
    column = max(map(cell_len, labels))
    names_width = max(_FIGURE, *(cell_len(name) + 1 for name in names))
    gutter = column + names_width * len(names)
    lines = [joined(f"{'':{column}}{''.join(f'{name:>{names_width}}' for name in names)} |")]
    for place, heat in enumerate(first):
        role = heat.segment.role
        values = {name: list(_per_character(heats[name][place])) for name in names}
        means = "".join(f"{number(mean_nats(heats[name][place])):>{names_width}}" for name in names)
        begin = f"{set_cell_size(labels[place], column)}{means}"
        for order, row in enumerate(rows_of(heat.segment.text, _left(width, gutter) - 1)):
            shades = values[names[0]]
            text = shaded(row, shades, colours) if colours else "".join(cell.shown for cell in row)
            marked = _coloured(f"{begin if order == 0 else ' ' * gutter} |", role, colours is not None)
            lines.append(joined(marked, " ", text))
            if heat.nats is not None:
                for name in names[1:] if colours else names:
                    lines.append(joined(f"{name:>{gutter}} : {strip(row, values[name], ramp)}".rstrip()))
    return lines


def heading(episode: Trajectory | Trace) -> Styled:
    """Return the outcome of an episode in one line."""
    reward = "no verifier" if episode.reward is None else f"reward {episode.reward:g}"
    said = f"{episode.task_id}: {episode.source}, {episode.stop_reason}, {reward}"
    return joined(said.replace("\n", " "))


def label_of(segment: Segment | TraceSegment) -> Styled:
    """Return role and channel of a segment."""
    role = segment.role.name.lower()
    return joined(f"{role} {segment.channel}".replace("\n", " ") if segment.channel else role)


def mean_nats(heat: TokenLosses) -> float | None:
    """Return the mean nats per token of a segment; None if nothing was scored."""
    return sum(heat.nats) / len(heat.nats) if heat.nats else None


def _lines(text: str, width: int | None) -> Iterator[str]:
    if width is None:
        yield from map(Styled, escape_unprintable(text, keep=LINES).removesuffix("\n").split("\n"))
    else:
        yield from ("".join(cell.shown for cell in row) for row in rows_of(text, width))


def _left(width: int, gutter: int) -> int:
    """Return the columns left for text beside the gutter and its separator."""
    return max(width - gutter - len(" | "), _LEAST_WIDTH)


def _coloured(gutter: str, role: Role, coloured: bool) -> Styled:
    return styled(gutter, Style(color=_COLOURS[role]), ColorSystem.STANDARD if coloured else None)


def _per_character(heat: TokenLosses) -> Iterator[float | None]:
    """Yield the nats of each character's token."""
    if heat.nats is None:
        yield from [None] * len(heat.segment.text)
        return
    for piece, nats in zip(heat.pieces, heat.nats, strict=True):
        yield from [nats] * len(piece)
