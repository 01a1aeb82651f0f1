"""Benchmarks of speed: each compares the code with a yardstick in the same run."""
