"""A trajectory as text to read: each line behind the role of its segment.

The text is data. Every line has the gutter, so nothing that an environment or a model wrote can pass for a label.
"""

from __future__ import annotations

from echo_cli.display import printable
from echo_cli.trajectory import Segment, Trajectory


def transcript(trajectory: Trajectory) -> str:
    """The role-marked transcript of `trajectory`, behind one line on how it went."""
    labels = [_label(segment) for segment in trajectory.segments]
    width = max(map(len, labels))
    reward = "no verifier" if trajectory.reward is None else f"reward {trajectory.reward:g}"
    heading = f"{trajectory.task_id}: {trajectory.source}, {trajectory.stop_reason}, {reward}"
    lines = [printable(heading).replace("\n", " ")]
    for label, segment in zip(labels, trajectory.segments, strict=True):
        text = printable(segment.text).removesuffix("\n")
        for number, line in enumerate(text.split("\n")):
            lines.append(f"{label if number == 0 else '':{width}} | {line}")
    return "\n".join(lines)


def _label(segment: Segment) -> str:
    role = segment.role.name.lower()
    return printable(f"{role} {segment.channel}").replace("\n", " ") if segment.channel else role
