"""Checkpoint versions and metrics that other services and people read."""
