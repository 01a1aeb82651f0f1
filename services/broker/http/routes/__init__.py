"""OANDA's routes, a file per resource."""
