"""PNG pictures in one style. They are drawn by matplotlib, which the optional extra `plots` installs."""

import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.adapters.outputs import atomic_output, check_output
from shared.errors import DataError, ServiceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, GREY = "#1f2933", "#5f6b7a", "#e4e7eb", "#c3cad3"

#: Okabe and Ito's palette: colour-blind readers can distinguish these colours, also by lightness.
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"

#: Arguments of `set_title` for a panel.
TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10, "fontweight": "bold", "color": INK}

#: Value of the text chunk `Software`, which `write_png` puts near the start of every file.
_SOFTWARE = "Micro Stochastic MuZero"
_SIGNATURE_BYTES = 1_024


def require_drawable(path: Path) -> None:
    """Check that a picture can be drawn before minutes are spent on its contents.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the folder does not exist, or the path holds a file that this program did not draw.
    """
    if find_spec("matplotlib") is None:
        raise ServiceError("matplotlib, which draws the picture, is not installed; install the extra `plots`")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise DataError(f"{path}: expected the name of a file, in a folder that exists")
    _output(path)


def blank_figure(width_inches: float, height_inches: float) -> "Figure":
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def panels(figure: "Figure", heights: Sequence[float], *, shared_x: bool = False) -> list["Axes"]:
    """Panels one above the other, with a light grid and without a frame.

    Args:
        figure: an empty figure.
        heights: relative height of each panel, from the top.
        shared_x: all panels have the same x axis.
    """
    axes = figure.subplots(len(heights), 1, sharex=shared_x, height_ratios=heights, squeeze=False)[:, 0]
    for panel in axes:
        panel.set_axisbelow(True)
        panel.grid(color=GRID)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[["bottom", "left"]].set_color(GRID)
        panel.tick_params(colors=MUTED, labelsize=9)
        panel.xaxis.label.set_color(MUTED)
        panel.yaxis.label.set_color(MUTED)
    return list(axes)


def date_axis(axes: "Axes", *, min_ticks: int = 5, max_ticks: int | None = None) -> None:
    """Label the x axis with dates and times as short as they can be without ambiguity."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=min_ticks, maxticks=max_ticks)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def png_bytes(figure: "Figure") -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()


def write_png(figure: "Figure", path: Path) -> None:
    """Write the figure to a file; only a picture that this function wrote is replaced.

    Raises:
        DataError: the file cannot be written, or the path holds another file.
    """
    with atomic_output(_output(path)) as temporary:
        figure.savefig(temporary, format="png", facecolor="white", metadata={"Software": _SOFTWARE})


def _output(path: Path) -> Path:
    return check_output(path, "picture drawn by this program", _is_own)


def _is_own(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_SIGNATURE_BYTES)
    return start.startswith(b"\x89PNG") and f"Software\0{_SOFTWARE}".encode() in start
