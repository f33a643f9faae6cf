"""Splits of an order of the nodes, under the memory that its tensors take as they live and die."""
