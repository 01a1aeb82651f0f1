"""Finds drawn lines in a decoded picture by their colour."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from shared.numeric import Bool


def pixels_of(path: Path, colour: str, tolerance: int = 8) -> Bool:
    """`[height, width]` True at the pixels whose channels differ from a colour by at most a tolerance."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.int64)
    near: Bool = np.abs(pixels - ImageColor.getrgb(colour)[:3]).max(axis=2) <= tolerance
    return near


def columns_of(pixels: Bool) -> float:
    """Share of the columns that have a pixel."""
    return float(pixels.any(axis=0).mean())


def height_of(pixels: Bool, begin: float, end: float) -> float:
    """Mean height of the pixels between two shares of the width; 0 is the bottom, 1 the top."""
    num_rows, num_columns = pixels.shape
    rows = np.nonzero(pixels[:, round(begin * num_columns) : round(end * num_columns)])[0]
    return float(1.0 - rows.mean() / num_rows)
