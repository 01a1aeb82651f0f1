"""Pictures as PNG files; what draws them, matplotlib, is the optional extra `plots`."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import DataError, ServiceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def require_drawable(path: Path) -> None:
    """Check, before minutes are spent, that a picture can be drawn.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: there is no folder to write to.
    """
    if find_spec("matplotlib") is None:
        raise ServiceError(
            "matplotlib, which draws the picture, is not installed; it comes with the extra `plots`"
        )
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise DataError(f"{path}: expected the name of a file, in a folder that exists")


def blank_figure(width_inches: float, height_inches: float) -> "Figure":
    """An empty picture, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: "Figure", path: Path) -> None:
    """Write a picture to a file.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        figure.savefig(path, format="png", facecolor="white")
    except OSError as refused:
        raise DataError(f"{path}: the picture cannot be written: {refused.strerror}") from refused
