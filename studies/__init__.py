"""Studies of learning: whether the agent learns, how much is possible, and how each setting contributes."""
