"""Statistics of trades and equity curves, position sizing and tests of significance."""
