"""The replay buffer, its steps, and their training targets."""
