"""The trainer: journals trajectories, learns from them and publishes versions."""
