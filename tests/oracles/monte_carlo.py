"""Monte Carlo statistics of given draws, one curve at a time."""

from shared.numeric import Float64


def walk(curves: Float64) -> tuple[list[list[float]], list[float], list[float]]:
    """For each row of trades: equity after every trade (0 first), deepest fall, lowest point."""
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
