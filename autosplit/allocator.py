"""PyTorch's CUDA caching allocator as arithmetic: which sizes it rounds, splits, keeps and gives back.

Follows the default settings of ``c10::cuda::CUDACachingAllocator`` on one stream: sizes are rounded
to 512 B; requests up to 1 MiB come from 2 MiB segments, requests below 10 MiB from 20 MiB segments,
larger ones from a segment of their own rounded to 2 MiB; the best fitting free block is split when
enough is left over; neighbours merge when freed; a failed request first gives the wholly free
segments back. It holds no memory and knows nothing of torch, so it replays a list of events as
readily as it serves a virtual device.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from autosplit.units import format_bytes

_ROUND_BYTES = 512
_MIB = 1 << 20
_SMALL_REQUEST_BYTES = 1 * _MIB
_SMALL_SEGMENT_BYTES = 2 * _MIB
_LARGE_REQUEST_BYTES = 10 * _MIB
_LARGE_SEGMENT_BYTES = 20 * _MIB
_SEGMENT_ROUND_BYTES = 2 * _MIB


class AllocationError(Exception):
    """A request does not fit, also after the cache was given back.

    Attributes:
        requested_bytes: the request, before rounding.
        capacity_bytes: memory of the device.
        allocated_bytes: bytes in live blocks when the request was made.
        reserved_bytes: bytes in segments, live and cached, when it was refused.
    """

    def __init__(self, *, requested_bytes: int, capacity_bytes: int, allocated_bytes: int, reserved_bytes: int) -> None:
        super().__init__(
            f"out of memory: tried to allocate {format_bytes(requested_bytes)} of {format_bytes(capacity_bytes)}, "
            f"of which {format_bytes(allocated_bytes)} is allocated and {format_bytes(reserved_bytes)} reserved"
        )
        self.requested_bytes = requested_bytes
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = allocated_bytes
        self.reserved_bytes = reserved_bytes


class Block:
    """A run of bytes inside one segment, free or in use; ``previous`` and ``next`` are its neighbours."""

    __slots__ = ("address", "in_use", "next", "previous", "requested_bytes", "size_bytes", "small")

    def __init__(self, size_bytes: int, address: int, small: bool) -> None:
        self.size_bytes = size_bytes
        self.address = address
        self.small = small
        self.previous: Block | None = None
        self.next: Block | None = None
        self.in_use = False
        self.requested_bytes = 0


# The address makes each key unique, so a comparison never reaches the block.
_Pool = list[tuple[int, int, Block]]


class CachingAllocator:
    """The caching allocator of one device. ``capacity_bytes`` None never refuses.

    Attributes:
        allocated_bytes: live blocks, rounded (``torch.cuda.memory_allocated``).
        requested_bytes: live blocks as asked for (``requested_bytes.all.current``).
        reserved_bytes: segments, live and cached (``torch.cuda.memory_reserved``).
        peak_allocated_bytes, peak_requested_bytes, peak_reserved_bytes: their maxima since ``reset_peak``.

    >>> device = CachingAllocator(capacity_bytes=64 << 20)
    >>> block = device.malloc(1000)
    >>> device.requested_bytes, device.allocated_bytes, device.reserved_bytes
    (1000, 1024, 2097152)
    >>> device.free(block)
    >>> device.allocated_bytes, device.reserved_bytes
    (0, 2097152)
    """

    def __init__(self, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        self.allocated_bytes = 0
        self.requested_bytes = 0
        self.reserved_bytes = 0
        self.peak_allocated_bytes = 0
        self.peak_requested_bytes = 0
        self.peak_reserved_bytes = 0
        self._small_pool: _Pool = []
        self._large_pool: _Pool = []
        self._next_address = 0

    def malloc(self, nbytes: int) -> Block | None:
        """A block for ``nbytes``; None for 0 bytes, which need no memory.

        Raises:
            AllocationError: no free block fits and a new segment would exceed the capacity.

        O(log n) in the free blocks, but for the memory move of a list deletion.
        """
        if nbytes == 0:
            return None
        size = -(-nbytes // _ROUND_BYTES) * _ROUND_BYTES
        small = size <= _SMALL_REQUEST_BYTES
        pool = self._small_pool if small else self._large_pool
        at = bisect_left(pool, (size,))
        block = pool.pop(at)[2] if at < len(pool) else self._new_segment(size, small, nbytes)
        rest = block.size_bytes - size
        if rest >= _ROUND_BYTES if small else rest > _SMALL_REQUEST_BYTES:
            self._split(block, size)
        block.in_use = True
        block.requested_bytes = nbytes
        self.allocated_bytes += block.size_bytes
        self.requested_bytes += nbytes
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        self.peak_requested_bytes = max(self.peak_requested_bytes, self.requested_bytes)
        return block

    def free(self, block: Block | None) -> None:
        """Give ``block`` back to its pool, merged with its free neighbours. None is ignored.

        Raises:
            ValueError: the block is not in use (freed twice).
        """
        if block is None:
            return
        if not block.in_use:
            raise ValueError(f"block at {block.address} of {block.size_bytes} bytes is freed twice")
        self.allocated_bytes -= block.size_bytes
        self.requested_bytes -= block.requested_bytes
        block.in_use = False
        pool = self._small_pool if block.small else self._large_pool
        if block.previous is not None and not block.previous.in_use:
            block = block.previous
            _remove(pool, block)
            _absorb_next(block)
        if block.next is not None and not block.next.in_use:
            _remove(pool, block.next)
            _absorb_next(block)
        insort(pool, (block.size_bytes, block.address, block))

    def empty_cache(self) -> None:
        """Give the wholly free segments back to the device; a segment with one live block stays."""
        self._small_pool = self._keep_split(self._small_pool)
        self._large_pool = self._keep_split(self._large_pool)

    def reset_peak(self) -> None:
        """Start the three peaks again from what is held now."""
        self.peak_allocated_bytes = self.allocated_bytes
        self.peak_requested_bytes = self.requested_bytes
        self.peak_reserved_bytes = self.reserved_bytes

    def _new_segment(self, size: int, small: bool, nbytes: int) -> Block:
        segment = segment_bytes(size)
        if not self._has_room(segment):
            self.empty_cache()
            if not self._has_room(segment):
                raise AllocationError(
                    requested_bytes=nbytes,
                    capacity_bytes=self.capacity_bytes or 0,
                    allocated_bytes=self.allocated_bytes,
                    reserved_bytes=self.reserved_bytes,
                )
        block = Block(segment, self._next_address, small)
        self._next_address += segment
        self.reserved_bytes += segment
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return block

    def _has_room(self, segment: int) -> bool:
        return self.capacity_bytes is None or self.reserved_bytes + segment <= self.capacity_bytes

    def _split(self, block: Block, size: int) -> None:
        rest = Block(block.size_bytes - size, block.address + size, block.small)
        rest.previous, rest.next = block, block.next
        if block.next is not None:
            block.next.previous = rest
        block.next = rest
        block.size_bytes = size
        insort(self._small_pool if rest.small else self._large_pool, (rest.size_bytes, rest.address, rest))

    def _keep_split(self, pool: _Pool) -> _Pool:
        kept = [entry for entry in pool if entry[2].previous is not None or entry[2].next is not None]
        self.reserved_bytes -= sum(entry[0] for entry in pool) - sum(entry[0] for entry in kept)
        return kept


def segment_bytes(size_bytes: int) -> int:
    """Bytes the allocator takes from the device for a request of ``size_bytes`` that no free block fits.

    >>> [segment_bytes(n) // 2**20 for n in (512, 2 << 20, 10 << 20, 25 << 20)]
    [2, 20, 10, 26]
    """
    if size_bytes <= _SMALL_REQUEST_BYTES:
        return _SMALL_SEGMENT_BYTES
    if size_bytes < _LARGE_REQUEST_BYTES:
        return _LARGE_SEGMENT_BYTES
    return -(-size_bytes // _SEGMENT_ROUND_BYTES) * _SEGMENT_ROUND_BYTES


def _remove(pool: _Pool, block: Block) -> None:
    del pool[bisect_left(pool, (block.size_bytes, block.address))]


def _absorb_next(block: Block) -> None:
    """Grow ``block`` over its next neighbour, which ceases to exist."""
    gone = block.next
    assert gone is not None
    block.size_bytes += gone.size_bytes
    block.next = gone.next
    if gone.next is not None:
        gone.next.previous = block
