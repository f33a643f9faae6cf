"""Virtual devices: real multi-device execution of PyTorch on a CPU.

Inside ``cluster(...)`` the devices ``sim:0`` to ``sim:n-1`` exist. Tensors on them are plain
``torch.Tensor`` objects; every kernel refuses mixed devices as CUDA does, every storage is booked in an
emulation of CUDA's caching allocator with an enforced capacity, and every copy between devices is
logged. With ``data=False`` nothing is computed, so a model of any size runs.

The first ``cluster(...)`` registers the backend with torch, which holds for the rest of the process
(``torch.accelerator`` then says "sim"); importing this package does not.
"""

from autosplit.sim.virtual import Cluster, cluster, parse_memories
from autosplit.sim.world import Transfer

__all__ = ["Cluster", "Transfer", "cluster", "parse_memories"]
