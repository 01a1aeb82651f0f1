"""The networks and their sizes."""
