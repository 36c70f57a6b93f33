"""Benchmarks that `flowgen bench` runs: published tables made anew, and speed against peers."""
