"""OANDA's routes over HTTP: requests parsed, answers rendered, prices and transactions streamed."""
