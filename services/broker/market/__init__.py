"""The market that is replayed: ticks made of bars, the pace of the replay, and candles."""
