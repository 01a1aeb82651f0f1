"""From the stream to the disk: finished trajectories are checked, journalled once, and summarised."""
