"""Devices, links and clusters: what a plan places nodes on; as a spec, and as a file. No torch here."""

from autosplit.catalogue import Rates
from autosplit.device.cluster import HOST, Cluster, Device, Link
from autosplit.device.file import from_data, read_cluster, to_toml
from autosplit.device.given import DescribedLike, cluster_of, find_cluster, unlinked, with_memory
from autosplit.device.spec import described, from_entry, is_described, meant, parse_cluster

__all__ = [
    "HOST",
    "Cluster",
    "DescribedLike",
    "Device",
    "Link",
    "Rates",
    "cluster_of",
    "described",
    "find_cluster",
    "from_data",
    "from_entry",
    "is_described",
    "meant",
    "parse_cluster",
    "read_cluster",
    "to_toml",
    "unlinked",
    "with_memory",
]
