"""A self-play worker: plays sessions with the newest version and sends trajectories to Redis."""
