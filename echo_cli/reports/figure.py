"""Style and output of figures: PNG and SVG, with the plotted numbers as CSV.

Text in a figure is data: it is shown verbatim, without markup and control characters.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from echo_cli.errors import EchoError, first_line
from echo_cli.files import os_errors, write_atomic, write_csv
from echo_cli.symlinks import make_folder
from echo_cli.text import escape_unprintable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")

# Okabe and Ito's palette, distinguishable with common forms of colour blindness; its yellow is omitted as too faint on
# white. Runs also differ by marker, for greyscale prints.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
INK = "#333333"
WIDTH = 10.0
"""Width of a figure, inches."""

PAIR_HEIGHT = 4.8
"""Height of a figure of two panels side by side, inches."""
POINT_COLUMNS = ("run", "step", "series", "value")
"""Columns of the CSV of plotted points; `run` may be the label of several runs."""

_DPI = 160
_STYLE: Any = {  # matplotlib types the keys as literals
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E6E6E6",
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.4,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "text.parse_math": False,  # a $ in a run's name is literal
    "text.usetex": False,
    "svg.fonttype": "none",  # keeps text searchable
    "svg.hashsalt": "echo-cli",  # makes equal figures equal byte for byte
}


@dataclass(frozen=True)
class Plotted:
    """Paths of the written files."""

    png: Path
    svg: Path
    csv: Path


def picture_stem(output: Path | None, folder: Path, name: str) -> Path:
    """Return the path of a figure's files without extension: `output`, `name` in `output`, or `name` in `folder`.

    Raises:
        EchoError: `output` has the extension of another file format.
    """
    if output is None or output.is_dir():
        return (output or folder) / name
    if output.suffix.lower() in (".png", ".svg", ".csv"):
        return output.with_suffix("")
    if names_a_file(output):
        raise EchoError(
            f"cannot write {escape_unprintable(output)}: not a .png, .svg or .csv",
            "all three are written together; for a folder of this name, create it first",
        )
    return output / name


def names_a_file(path: Path) -> bool:
    """Return whether `path` looks like a file's name: it has an extension that begins with a letter, unlike run-0.5."""
    return path.suffix[1:2].isalpha() and not path.is_dir()


def write_picture(
    stem: Path,
    draw: Callable[[Figure], None],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    height: float,
) -> Plotted:
    """Draw a figure of `WIDTH` × `height` inches and write it as PNG and SVG, with `rows` as CSV.

    Raises:
        EchoError: the path is not writable, or matplotlib cannot be imported.
    """
    matplotlib = _load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_settings(matplotlib)), warnings.catch_warnings():
        # Characters that the font lacks are boxes in the PNG; the SVG and the CSV contain them as text.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
        figure = Figure(figsize=(WIDTH, height), dpi=_DPI, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(png, format="png", dpi=_DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    plotted = Plotted(*(Path(f"{stem}{ending}") for ending in (".png", ".svg", ".csv")))
    with os_errors(stem.parent):
        make_folder(stem.parent)
    write_csv(plotted.csv, columns, rows)
    write_atomic(plotted.svg, svg.getvalue())
    write_atomic(plotted.png, png.getvalue())
    return plotted


def drawn_or_reported(draw: Callable[[], T], report: Callable[[str], object]) -> T | None:
    """Return the result of `draw`; report a failure in one line and return None.

    A picture accompanies a result that took hours to compute, so no failure to draw may cost the result.
    """
    try:
        return draw()
    except Exception as error:
        reason = error.message if isinstance(error, EchoError) else f"{type(error).__name__}: {first_line(error)}"
        report(f"no picture: {escape_unprintable(reason)}")
        return None


def _settings(matplotlib: ModuleType) -> Any:
    """Return all settings of a figure, whatever matplotlibrc file in the working directory matplotlib has read."""
    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
    return defaults | _STYLE


def _load_matplotlib() -> ModuleType:
    """Import matplotlib, whatever backend MPLBACKEND names.

    Figures here use Agg. Notebooks export a backend that only their kernel has; elsewhere the import fails.

    Raises:
        EchoError: matplotlib cannot be imported.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except ImportError as error:
        raise EchoError(
            f"cannot import matplotlib: {first_line(error)}", "install it: pip install matplotlib", exit_code=1
        ) from error
    except (OSError, ValueError) as error:  # matplotlibrc is not text
        reason = f"cannot import matplotlib: {first_line(error)}"
        raise EchoError(reason, "remove the file matplotlibrc in the working directory", exit_code=1) from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with suppress(ValueError):  # a caller's own figures keep the backend if it exists here
            matplotlib.rcParams["backend"] = backend
    return matplotlib


def write_in_the_middle(axes: Axes, text: str) -> None:
    """Write `text` in the middle of a panel on which nothing is drawn."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", fontsize=12)
