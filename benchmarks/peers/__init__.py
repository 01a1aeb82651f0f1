"""Other implementations of the search that benchmarks and tests compare with."""
