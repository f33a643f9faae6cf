"""autosplit: automatic model partitioning for PyTorch."""
