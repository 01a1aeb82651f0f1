"""Pictures as PNG files; what draws them, matplotlib, is the optional extra `plots`."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from shared.adapters.outputs import check_output, written_aside
from shared.errors import DataError, ServiceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Text chunk of every picture drawn here, in the first bytes of the file.
_SOFTWARE = "Micro Stochastic MuZero"
_SIGNATURE_BYTES = 1_024


def require_drawable(path: Path) -> None:
    """Check, before minutes are spent, that a picture can be drawn.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: there is no folder to write to, or the file there is not a picture drawn by this program.
    """
    if find_spec("matplotlib") is None:
        raise ServiceError(
            "matplotlib, which draws the picture, is not installed; it comes with the extra `plots`"
        )
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise DataError(f"{path}: expected the name of a file, in a folder that exists")
    _output(path)


def blank_figure(width_inches: float, height_inches: float) -> "Figure":
    """An empty picture, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_png(figure: "Figure", path: Path) -> None:
    """Write a picture to a file; one that was drawn here before is replaced.

    Raises:
        DataError: the file cannot be written, or another file is there.
    """
    with written_aside(_output(path)) as aside:
        figure.savefig(aside, format="png", facecolor="white", metadata={"Software": _SOFTWARE})


def _output(path: Path) -> Path:
    return check_output(path, "picture drawn by this program", _is_own)


def _is_own(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_SIGNATURE_BYTES)
    return start.startswith(b"\x89PNG") and f"Software\0{_SOFTWARE}".encode() in start
