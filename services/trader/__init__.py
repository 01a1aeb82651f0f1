"""The trader: turns a decision at each bar's close into orders, within its guards."""
