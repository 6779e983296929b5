"""The benchmarks measure what they say: a figure that nobody checks is worth nothing."""
