"""Benchmarks, run by name."""
