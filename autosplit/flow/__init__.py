"""Minimum cuts, fast: Boykov and Kolmogorov's algorithm over flat lists, alone and as a backend of networkx."""

from autosplit.flow.network import SINK, SOURCE, FlowNetwork

__all__ = ["SINK", "SOURCE", "FlowNetwork"]
