"""Stages: contiguous plans, by dynamic programming over downsets."""
