"""A sweep as one self-contained page, report.html."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from echo_cli.files import write_atomic
from echo_cli.reports.html import templates
from echo_cli.sweeps.tables import NOTES, SweepTable


def write_report(
    folder: Path,
    sweep: Mapping[str, Any],
    tables: Sequence[SweepTable],
    *,
    command: str,
    pictures: Sequence[tuple[str, Path]],
) -> Path:
    """Write report.html.

    Args:
        sweep: the content of sweep.json.
        tables: its tables, `sweep_tables`.
        command: the command line as typed.
        pictures: (caption, PNG file) pairs; the images are embedded in the page.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    cells, column = sweep["cells"], tables[0].columns[0]
    label_of = {row["arm"]: shown[0] for row, shown in zip(sweep["rows"], tables[0].rows, strict=True)}
    unfinished = [
        (label_of[cell["arm"]], [str(cell["seed"]), cell["status"], cell["error"] or ""])
        for cell in cells
        if cell["status"] != "finished"
    ]
    contents = {
        "verdicts": "Verdicts",
        **{f"picture-{number}": caption for number, (caption, _) in enumerate(pictures, start=1)},
        **{f"table-{number}": table.title for number, table in enumerate(tables, start=1)},
        **({"unfinished": "Runs that did not finish"} if unfinished else {}),
        "command": "Command and config",
    }
    page = (
        templates()
        .get_template("sweep.html")
        .render(
            title=f"{column} sweep: {folder.name}",
            column=column,
            contents=contents,
            seeds=list(dict.fromkeys(cell["seed"] for cell in cells)),
            cells=len(cells),
            verdicts=[(label_of[row["arm"]], [row["verdict"], row["reason"]]) for row in sweep["rows"]],
            rule=sweep["rule"],
            pictures=[(caption, base64.b64encode(path.read_bytes()).decode()) for caption, path in pictures],
            tables=[(table.title, table.columns, [(row[0], row[1:]) for row in table.rows]) for table in tables],
            table_notes=NOTES,
            unfinished=unfinished,
            command=command,
            config=yaml.safe_dump(sweep["config"], sort_keys=False),
        )
    )
    path = folder / "report.html"
    write_atomic(path, page.encode())
    return path
