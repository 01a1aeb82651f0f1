"""The replayed market: ticks made from bars, the clock and the pace of the replay, and candles."""
