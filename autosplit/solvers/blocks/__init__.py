"""Blocks: the problem in integers, for the solvers that do not look at single tensors."""
