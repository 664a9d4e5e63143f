"""A sweep as one self-contained page, report.html."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from echo_cli.files import write_atomic
from echo_cli.reports.html import templates
from echo_cli.sweeps.plan import shown_coeff
from echo_cli.sweeps.results import LambdaResult
from echo_cli.sweeps.tables import NOTES, sweep_tables


def write_report(
    folder: Path,
    sweep: Mapping[str, Any],
    results: Sequence[LambdaResult],
    *,
    command: str,
    pictures: Sequence[tuple[str, Path]],
) -> Path:
    """Write report.html.

    Args:
        sweep: the content of sweep.json.
        command: the command line as typed.
        pictures: (caption, PNG file) pairs; the images are embedded in the page.

    Raises:
        EchoError: the disk is full (exit code 1) or the folder is not writable.
    """
    cells, tables = sweep["cells"], sweep_tables(results)
    unfinished = [
        (shown_coeff(cell["lambda"]), [str(cell["seed"]), cell["status"], cell["error"] or ""])
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
            title=f"λ sweep: {folder.name}",
            contents=contents,
            seeds=list(dict.fromkeys(cell["seed"] for cell in cells)),
            cells=len(cells),
            verdicts=[(shown_coeff(row["lambda"]), [row["verdict"], row["reason"]]) for row in sweep["rows"]],
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
