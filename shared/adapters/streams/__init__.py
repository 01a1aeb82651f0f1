"""Redis: streams and consumer groups, dead letters, leases, and the connection below them."""
