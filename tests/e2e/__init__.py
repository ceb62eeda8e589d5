"""Whole processes on real brokers: the path of a sample, killed and cut off."""
