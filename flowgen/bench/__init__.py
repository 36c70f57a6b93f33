"""Benchmarks of `flowgen bench`: reproduced tables of papers, and speed against other packages."""
