"""Profiler: what each operation takes on the devices that are here, measured.

operation  what makes two calls cost the same, and how one is run alone
materials  tensors to run it on
clock      events on CUDA, CPU time on a CPU
alone      warm-up, repeats, median, noise
scratch    memory that is taken and given back
walk       every operation of an emitted graph in its context
passes     whole passes, with a mark after every operation
task       which of these is done, for what
store      what was measured before, on disk
"""

from autosplit.profiler.store import Store, cache_folder
from autosplit.profiler.task import Profile, Progress, device_name, profile, recall
from autosplit.profiler.timing import NOISY, Timing

__all__ = ["NOISY", "Profile", "Progress", "Store", "Timing", "cache_folder", "device_name", "profile", "recall"]
