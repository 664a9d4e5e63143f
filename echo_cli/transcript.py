"""A trajectory as text to read: each line behind the role of its segment.

The text is data. Every line has the gutter, so nothing that an environment or a model wrote can pass for a label.
"""

from __future__ import annotations

from rich.color import ColorSystem
from rich.style import Style

from echo_cli.display import printable
from echo_cli.trajectory import Role, Segment, Trajectory

_COLOURS = {Role.CONTEXT: "blue", Role.ACTION: "green", Role.ENV_OUTPUT: "yellow", Role.WARNING: "red"}


def transcript(trajectory: Trajectory, *, coloured: bool = False) -> str:
    """The role-marked transcript of `trajectory`, behind one line on how it went.

    Args:
        coloured: whether the gutter has a colour for each role; the text itself never has one.
    """
    labels = [_label(segment) for segment in trajectory.segments]
    width = max(map(len, labels))
    reward = "no verifier" if trajectory.reward is None else f"reward {trajectory.reward:g}"
    heading = f"{trajectory.task_id}: {trajectory.source}, {trajectory.stop_reason}, {reward}"
    lines = [printable(heading).replace("\n", " ")]
    for label, segment in zip(labels, trajectory.segments, strict=True):
        text = printable(segment.text).removesuffix("\n")
        style = Style(color=_COLOURS[segment.role])
        for number, line in enumerate(text.split("\n")):
            gutter = f"{label if number == 0 else '':{width}} |"
            lines.append(f"{style.render(gutter, color_system=ColorSystem.STANDARD) if coloured else gutter} {line}")
    return "\n".join(lines)


def _label(segment: Segment) -> str:
    role = segment.role.name.lower()
    return printable(f"{role} {segment.channel}").replace("\n", " ") if segment.channel else role
