"""Nine features per bar, for history and live bars with the same kernels."""
