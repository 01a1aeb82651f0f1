"""The gateway: status, checkpoints, metrics, alerts, events, orders of an operator, and the dashboard."""
