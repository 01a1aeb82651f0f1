"""The trading environment: actions, positions, costs, rewards and chance outcomes."""
