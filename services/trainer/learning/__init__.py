"""One update: losses, gradients, several ranks, and how many updates are owed."""
