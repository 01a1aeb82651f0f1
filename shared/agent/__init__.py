"""The agent: one decision function, exploration, and episodes as trajectories."""
