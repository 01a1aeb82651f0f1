"""Speed: each benchmark runs the thing and a named yardstick in turn."""
