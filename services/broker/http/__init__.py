"""OANDA's routes over HTTP: reads requests, renders answers, streams prices and transactions."""
