"""The caching allocator: its rules one by one, and what holds for any run of requests."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autosplit.allocator import AllocationError, CachingAllocator, segment_bytes

MIB = 1 << 20


@pytest.mark.parametrize(
    ("nbytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (1 * MIB, 1 * MIB, 2 * MIB),
        (1 * MIB + 1, 1 * MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (11 * MIB, 11 * MIB, 12 * MIB),
    ],
)
def test_rounding_and_segments(nbytes, allocated, reserved):
    device = CachingAllocator()
    device.malloc(nbytes)
    # A remainder of at most 1 MiB in the large pool stays with its block.
    kept = reserved if 0 < reserved - allocated <= MIB and nbytes > MIB else allocated
    assert (device.requested_bytes, device.allocated_bytes, device.reserved_bytes) == (nbytes, kept, reserved)


def test_zero_bytes_take_nothing():
    device = CachingAllocator(0)
    assert device.malloc(0) is None
    device.free(None)
    assert device.peak_reserved_bytes == 0


def test_small_blocks_share_a_segment():
    device = CachingAllocator()
    blocks = [device.malloc(512 * 1024) for _ in range(4)]
    assert device.reserved_bytes == 2 * MIB
    device.malloc(512)
    assert device.reserved_bytes == 4 * MIB
    assert [block.address for block in blocks] == [i * 512 * 1024 for i in range(4)]


def test_best_fit_takes_the_smallest_block_that_fits():
    device = CachingAllocator()
    blocks = [device.malloc(n * MIB) for n in (40, 20, 30)]
    for block in blocks:
        device.free(block)
    assert device.malloc(15 * MIB).address == blocks[1].address
    assert device.malloc(25 * MIB).address == blocks[2].address
    assert device.reserved_bytes == 90 * MIB


def test_small_and_large_pools_do_not_mix():
    device = CachingAllocator()
    device.free(device.malloc(20 * MIB))
    device.malloc(1024)
    assert device.reserved_bytes == 22 * MIB


def test_neighbours_merge_when_freed():
    device = CachingAllocator()
    first, second, third = (device.malloc(2 * MIB) for _ in range(3))
    for block in (first, third, second):
        device.free(block)
    device.malloc(20 * MIB - 512)
    assert device.reserved_bytes == 20 * MIB


def test_empty_cache_gives_back_wholly_free_segments_only():
    device = CachingAllocator()
    kept, gone = device.malloc(2 * MIB), device.malloc(2 * MIB)
    whole = device.malloc(30 * MIB)
    device.free(gone)
    device.free(whole)
    device.empty_cache()
    assert device.reserved_bytes == 20 * MIB
    device.free(kept)
    device.empty_cache()
    assert device.reserved_bytes == 0


def test_a_failed_request_gives_the_cache_back_and_tries_again():
    device = CachingAllocator(40 * MIB)
    device.free(device.malloc(20 * MIB))
    device.free(device.malloc(20 * MIB))
    device.malloc(30 * MIB)
    assert device.reserved_bytes == 30 * MIB
    assert device.peak_reserved_bytes == 30 * MIB


def test_fragmentation_refuses_what_the_sum_of_free_bytes_would_allow():
    device = CachingAllocator(40 * MIB)
    pinned = [device.malloc(2 * MIB) for _ in range(20)]
    for block in pinned[1:10] + pinned[11:]:
        device.free(block)
    assert device.allocated_bytes == 4 * MIB
    with pytest.raises(AllocationError):
        device.malloc(20 * MIB)


def test_error_carries_the_figures():
    device = CachingAllocator(22 * MIB)
    device.malloc(3 * MIB)
    with pytest.raises(AllocationError, match=r"tried to allocate 20.0 MiB of 22.0 MiB") as caught:
        device.malloc(20 * MIB)
    error = caught.value
    assert error.requested_bytes == 20 * MIB
    assert error.capacity_bytes == 22 * MIB
    assert error.allocated_bytes == 3 * MIB
    assert error.reserved_bytes == 20 * MIB


def test_peaks_start_again_from_what_is_held():
    device = CachingAllocator()
    held, gone = device.malloc(1000), device.malloc(3000)
    device.free(gone)
    device.reset_peak()
    assert device.peak_allocated_bytes == 1024
    assert device.peak_requested_bytes == 1000
    assert device.peak_reserved_bytes == 2 * MIB
    device.free(held)


def test_freeing_twice_is_refused():
    device = CachingAllocator()
    block = device.malloc(1)
    device.free(block)
    with pytest.raises(ValueError, match="freed twice"):
        device.free(block)


SIZES = st.one_of(st.integers(0, 4096), st.integers(0, 3 * MIB), st.integers(0, 40 * MIB))
# A request, or the position of a live block to free.
STEPS = st.lists(st.one_of(SIZES.map(lambda n: ("malloc", n)), st.integers(0, 50).map(lambda i: ("free", i))))


@given(steps=STEPS, capacity=st.one_of(st.none(), st.integers(0, 120 * MIB)))
def test_any_run_of_requests(steps, capacity):
    device = CachingAllocator(capacity)
    live = []
    highest = 0
    for kind, value in steps:
        if kind == "free" and live:
            device.free(live.pop(value % len(live)))
        elif kind == "malloc":
            try:
                live.append(device.malloc(value))
            except AllocationError:
                refused = segment_bytes(-(-value // 512) * 512)
                assert device.reserved_bytes + refused > capacity
        blocks = [block for block in live if block is not None]
        assert device.allocated_bytes == sum(block.size_bytes for block in blocks)
        assert device.requested_bytes == sum(block.requested_bytes for block in blocks)
        assert device.requested_bytes <= device.allocated_bytes <= device.reserved_bytes
        assert capacity is None or device.reserved_bytes <= capacity
        spans = sorted((block.address, block.address + block.size_bytes) for block in blocks)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
        highest = max(highest, device.allocated_bytes)
    assert device.peak_allocated_bytes == highest
    for block in live:
        device.free(block)
    device.empty_cache()
    assert (device.allocated_bytes, device.requested_bytes, device.reserved_bytes) == (0, 0, 0)


@given(steps=STEPS)
def test_a_capacity_of_the_peak_is_enough_and_changes_nothing(steps):
    def replay(capacity):
        device = CachingAllocator(capacity)
        live = []
        for kind, value in steps:
            if kind == "malloc":
                live.append(device.malloc(value))
            elif live:
                device.free(live.pop(value % len(live)))
        return device.peak_allocated_bytes, device.peak_reserved_bytes

    peaks = replay(None)
    assert replay(peaks[1]) == peaks
