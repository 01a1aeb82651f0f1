"""PNG files drawn with matplotlib, which is the optional extra `plots`."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from shared.adapters.outputs import check_output, written_aside
from shared.errors import DataError, ServiceError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


#: Text chunk near the start of every picture drawn by this program.
_SOFTWARE = "Micro Stochastic MuZero"
_SIGNATURE_BYTES = 1_024


def require_drawable(path: Path) -> None:
    """Check that a picture can be drawn, before a long computation.

    Raises:
        ServiceError: matplotlib is not installed.
        DataError: the folder does not exist, or the file exists and is not a picture drawn by this program.
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


def write_png(figure: "Figure", path: Path) -> None:
    """Write a picture; an older one drawn by this program is replaced.

    Raises:
        DataError: the file cannot be written, or would overwrite a file of another kind.
    """
    with written_aside(_output(path)) as aside:
        figure.savefig(aside, format="png", facecolor="white", metadata={"Software": _SOFTWARE})


def _output(path: Path) -> Path:
    return check_output(path, "picture drawn by this program", _is_own)


def _is_own(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(_SIGNATURE_BYTES)
    return start.startswith(b"\x89PNG") and f"Software\0{_SOFTWARE}".encode() in start
