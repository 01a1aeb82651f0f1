"""Checkpoint versions: the store, its backends, promotions, and agents loaded from versions."""
