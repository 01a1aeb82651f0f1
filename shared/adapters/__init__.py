"""The only code that talks to Redis, files, DuckDB, OANDA and other services."""
