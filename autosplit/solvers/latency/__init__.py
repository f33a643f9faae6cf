"""Latency: the makespan of the emitted program, and of pieces that a host offers."""
