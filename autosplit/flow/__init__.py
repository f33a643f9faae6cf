"""Minimum cuts, fast: Boykov and Kolmogorov's algorithm over flat lists, alone and as a backend of networkx."""

from autosplit.flow.network import SINK, SOURCE, FlowNetwork
from autosplit.flow.residual import boykov_kolmogorov

__all__ = ["SINK", "SOURCE", "FlowNetwork", "boykov_kolmogorov"]
