"""Monte Carlo over given draws, one curve at a time."""

from shared.numeric import Float64


def walk(curves: Float64) -> tuple[list[list[float]], list[float], list[float]]:
    """Equity after every trade (0 first), deepest fall and lowest point of each row of trades."""
    equities, falls, lows = [], [], []
    for row in curves:
        equity = peak = fall = low = 0.0
        path = [0.0]
        for pips in row:
            equity += pips
            peak, low = max(peak, equity), min(low, equity)
            fall = max(fall, peak - equity)
            path.append(equity)
        equities.append(path)
        falls.append(fall)
        lows.append(low)
    return equities, falls, lows
