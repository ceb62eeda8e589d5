"""Benchmarks: each prints ratios against a baseline of the same run and leaves one JSON file in `results/`."""
