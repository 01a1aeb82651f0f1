"""The OANDA v20 client, the records of its answers, and candle downloads."""
