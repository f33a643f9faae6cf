"""Synthetic graphs that are hard to partition: shapes of real models, with the costs of a roofline, as quotients.

Times are those of devices of 100 TFLOP/s and 1 TB/s, and (the second kind) of 40 TFLOP/s and 0.6 TB/s, with 4 us per
operator; a transfer takes 10 us and its bytes at 25 GB/s. All is seeded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from autosplit.solvers.blocks.fleet import UNLIMITED, Fleet, Kind
from autosplit.solvers.blocks.quotient import Quotient

_SPEEDS = ((100e12, 1e12), (40e12, 0.6e12))
_START_NS, _LINK_NS, _LINK_BYTES_PER_NS = 4_000, 10_000, 25


class Graph:
    """Operators in program order."""

    def __init__(self) -> None:
        self.inputs: list[tuple[int, ...]] = []
        self.flops: list[float] = []
        self.size: list[int] = []
        self.weights: list[int] = []

    def op(self, inputs: Sequence[int], size: float, flops: float = 0, weights: float = 0) -> int:
        """One operator: what it reads, the bytes that it makes, its work and its parameters. Returns its number."""
        self.inputs.append(tuple(dict.fromkeys(inputs)))
        self.size.append(int(size))
        self.flops.append(flops)
        self.weights.append(int(weights))
        return len(self.size) - 1

    def quotient(self, kinds: int = 1) -> Quotient:
        """As blocks: one for each operator."""
        work = []
        for flops_per_s, bytes_per_s in _SPEEDS[:kinds]:
            row = []
            for inputs, size, flops, weights in zip(self.inputs, self.size, self.flops, self.weights, strict=True):
                moved = size + weights + sum(self.size[i] for i in inputs)
                row.append(_START_NS + int(1e9 * max(flops / flops_per_s, moved / bytes_per_s)))
            work.append(row)
        readers: list[list[int]] = [[] for _ in self.inputs]
        for reader, inputs in enumerate(self.inputs):
            for i in inputs:
                readers[i].append(reader)
        wires = [(_LINK_NS + self.size[i] // _LINK_BYTES_PER_NS, i, row) for i, row in enumerate(readers) if row]
        return Quotient.of_numbers(work, wires, fixed_bytes=self.weights)


class Block(NamedTuple):
    """Sizes of one transformer layer."""

    tokens: int = 2048
    width: int = 1024
    inner: int = 4096


def _linear(g: Graph, x: int, tokens: int, inner: int, outer: int) -> int:
    return g.op([x], 2 * tokens * outer, 2 * tokens * inner * outer, 2 * inner * outer)


def _norm(g: Graph, x: int, size: int, fine: bool) -> int:
    if not fine:
        return g.op([x], size)
    square = g.op([x], size)
    mean = g.op([square], size // 1024)
    root = g.op([mean], size // 1024)
    return g.op([g.op([x, root], size)], size, weights=2048)


def _rotary(g: Graph, x: int, tables: Sequence[int], size: int) -> int:
    halves = g.op([x], size // 2), g.op([x], size // 2)
    turned = g.op([g.op(halves[1:], size // 2), halves[0]], size)
    return g.op([g.op([x, tables[0]], size), g.op([turned, tables[1]], size)], size)


def _attention(g: Graph, x: int, block: Block, tables: Sequence[int] = ()) -> int:
    size = 2 * block.tokens * block.width
    q, k, v = (_linear(g, x, block.tokens, block.width, block.width) for _ in range(3))
    if tables:
        q, k = _rotary(g, q, tables, size), _rotary(g, k, tables, size)
    scores = g.op([q, k], 2 * block.tokens * 512, 2 * block.tokens * 512 * block.width)
    mixed = g.op([g.op([scores], 2 * block.tokens * 512), v], size, 2 * block.tokens * 512 * block.width)
    return _linear(g, mixed, block.tokens, block.width, block.width)


def _layer(g: Graph, x: int, block: Block, tables: Sequence[int] = (), fine: bool = False) -> int:
    size = 2 * block.tokens * block.width
    x = g.op([x, _attention(g, _norm(g, x, size, fine), block, tables)], size)
    y = _norm(g, x, size, fine)
    if fine:
        gate = _linear(g, y, block.tokens, block.width, block.inner)
        gate = g.op([g.op([gate], 2 * block.tokens * block.inner), gate], 2 * block.tokens * block.inner)
        up = g.op([gate, _linear(g, y, block.tokens, block.width, block.inner)], 2 * block.tokens * block.inner)
    else:
        up = g.op([_linear(g, y, block.tokens, block.width, block.inner)], 2 * block.tokens * block.inner)
    return g.op([x, _linear(g, up, block.tokens, block.inner, block.width)], size)


def gpt(layers: int, width: int = 1024) -> Graph:
    """A decoder with a large vocabulary at both ends."""
    g, block = Graph(), Block(2048, width, 4 * width)
    x = g.op([g.op([], 16_384)], 4096 * width, weights=100_000 * width)
    for _ in range(layers):
        x = _layer(g, x, block)
    _linear(g, g.op([x], 4096 * width), 2048, width, 50_000)
    return g


def llama(layers: int = 80) -> Graph:
    """The shape of Llama-70B, norms and rotary embeddings in single operators; two tables that all layers read."""
    g, block = Graph(), Block(4096, 8192, 28_672)
    ids = g.op([], 32_768)
    x = g.op([ids], 2 * 4096 * 8192, weights=2 * 32_000 * 8192)
    tables = g.op([ids], 4096 * 256), g.op([ids], 4096 * 256)
    for _ in range(layers):
        x = _layer(g, x, block, tables, fine=True)
    _linear(g, x, 4096, 8192, 32_000)
    return g


def _convolution(g: Graph, inputs: Sequence[int], pixels: int, inner: int, outer: int, side: int = 3) -> int:
    weights = 2 * inner * outer * side**2
    return g.op(inputs, 2 * pixels * outer, pixels * weights, weights)


def _residual(g: Graph, x: int, time: int | None, pixels: int, inner: int, outer: int) -> int:
    y = g.op([g.op([x], 2 * pixels * inner)], 2 * pixels * inner)
    y = _convolution(g, [y], pixels, inner, outer)
    if time is not None:
        y = g.op([y, _linear(g, g.op([time], 10_240), 4, 1280, outer)], 2 * pixels * outer)
    y = _convolution(g, [g.op([g.op([y], 2 * pixels * outer)], 2 * pixels * outer)], pixels, outer, outer)
    return g.op([y, x if inner == outer else _convolution(g, [x], pixels, inner, outer, 1)], 2 * pixels * outer)


def unet(levels: int, repeats: int, width: int = 320, pixels: int = 16_384, timed: bool = True) -> Graph:
    """Every block on the way down is read by its counterpart on the way up."""
    g = Graph()
    time = _linear(g, _linear(g, g.op([], 2560), 4, 320, 1280), 4, 1280, 1280) if timed else None
    x = _convolution(g, [g.op([], 8 * pixels)], pixels, 4, width)
    skips, channels = [(x, width)], width
    for level in range(levels):
        outer = width * min(2**level, 4)
        for _ in range(repeats):
            x, channels = _residual(g, x, time, pixels, channels, outer), outer
            if level >= 2 and timed:
                x = _layer(g, x, Block(pixels, channels, 4 * channels))
            skips.append((x, channels))
        if level < levels - 1:
            pixels //= 4
            x = _convolution(g, [x], pixels, channels, channels)
            skips.append((x, channels))
    x = _residual(g, _residual(g, x, time, pixels, channels, channels), time, pixels, channels, channels)
    for level in reversed(range(levels)):
        outer = width * min(2**level, 4)
        for _ in range(repeats + 1):
            skip, more = skips.pop()
            x = g.op([x, skip], 2 * pixels * (channels + more))
            x, channels = _residual(g, x, time, pixels, channels + more, outer), outer
            if level >= 2 and timed:
                x = _layer(g, x, Block(pixels, channels, 4 * channels))
        if level:
            pixels *= 4
            x = _convolution(g, [g.op([x], 2 * pixels * channels)], pixels, channels, channels)
    _convolution(g, [g.op([x], 2 * pixels * channels)], pixels, channels, 4)
    return g


def inception(blocks: int, seed: int = 0) -> Graph:
    """Blocks of branches of different lengths, joined after each."""
    g, rng = Graph(), np.random.default_rng(seed)
    x, pixels, channels = _convolution(g, [g.op([], 10**6)], 65_536, 3, 64), 65_536, 64
    for number in range(blocks):
        ends = []
        for _ in range(int(rng.integers(3, 6))):
            y = _convolution(g, [x], pixels, channels, 64, 1)
            for _ in range(int(rng.integers(0, 4))):
                y = g.op([_convolution(g, [y], pixels, 64, 64, int(rng.choice([3, 5])))], 2 * pixels * 64)
            ends.append(y)
        channels = 64 * len(ends)
        x = g.op(ends, 2 * pixels * channels)
        if number % max(1, blocks // 3) == blocks // 3:
            pixels //= 4
            x = _convolution(g, [x], pixels, channels, channels)
    return g


def moe(layers: int, experts: int, width: int = 1024) -> Graph:
    """Every layer has experts of three operators each, all alike, that each read their share of the tokens."""
    g, tokens = Graph(), 4096
    x, size = g.op([], 2 * tokens * width), 2 * tokens * width
    for _ in range(layers):
        x = g.op([x, _attention(g, g.op([x], size), Block(tokens, width, 4 * width))], size)
        y = g.op([x], size)
        router = g.op([y], 8 * tokens, 2 * tokens * width * experts)
        ends = []
        for _ in range(experts):
            share = g.op([y, router], 2 * size // experts)
            up = g.op([_linear(g, share, 2 * tokens // experts, width, 4 * width)], 16 * tokens * width // experts)
            ends.append(_linear(g, up, 2 * tokens // experts, 4 * width, width))
        x = g.op([x, g.op([*ends, router], size)], size)
    return g


def towers(layers: int) -> Graph:
    """Two encoders of different widths that meet at the end."""
    g, ends = Graph(), []
    for width, tokens in ((1024, 1024), (768, 2048)):
        x = g.op([], 2 * tokens * width)
        for _ in range(layers):
            x = _layer(g, x, Block(tokens, width, 4 * width))
        ends.append(_linear(g, x, 64, width, 512))
    g.op([g.op(ends, 65_536)], 65_536)
    return g


def series_parallel(count: int, seed: int) -> Graph:
    """Drawn by cutting edges in two and doubling edges, at random."""
    rng = np.random.default_rng(seed)
    edges, total = [(0, 1)], 2
    while total < count:
        at = int(rng.integers(len(edges)))
        tail, head = edges[at]
        edges.append((total, head))
        if rng.random() < 0.6:
            edges[at] = (tail, total)
        else:
            edges.append((tail, total))
        total += 1
    before: list[set[int]] = [set() for _ in range(total)]
    for tail, head in edges:
        before[head].add(tail)
    return _random_costs(_numbered(before), rng)


def irregular(count: int, reach: int, seed: int) -> Graph:
    """Each operator reads one to three of the ``reach`` before it, and now and then one from far back."""
    rng = np.random.default_rng(seed)
    before: list[set[int]] = [set()]
    for v in range(1, count):
        near = rng.integers(max(0, v - reach), v, int(rng.integers(1, 4)))
        before.append({*near.tolist(), *([int(rng.integers(0, v))] if rng.random() < 0.05 else [])})
    return _random_costs(before, rng)


def _numbered(before: Sequence[set[int]]) -> list[set[int]]:
    """The same in a topological order."""
    missing = [len(row) for row in before]
    after: list[list[int]] = [[] for _ in before]
    for head, tails in enumerate(before):
        for tail in tails:
            after[tail].append(head)
    ready, number = [v for v, count in enumerate(missing) if not count], {}
    while ready:
        v = ready.pop()
        number[v] = len(number)
        for head in after[v]:
            missing[head] -= 1
            if not missing[head]:
                ready.append(head)
    found: list[set[int]] = [set() for _ in before]
    for head, tails in enumerate(before):
        found[number[head]] = {number[tail] for tail in tails}
    return found


def _random_costs(before: Sequence[set[int]], rng: np.random.Generator) -> Graph:
    g = Graph()
    for inputs in before:
        flops = float(rng.lognormal(23, 1.2))
        g.op(sorted(inputs), rng.lognormal(15, 1), flops, flops / 2048)
    return g


GRAPHS: dict[str, Callable[[], Graph]] = {
    "gpt-24": lambda: gpt(24),
    "gpt-96": lambda: gpt(96, 4096),
    "llama-70b": llama,
    "unet-3x1": lambda: unet(3, 1, timed=False),
    "unet-4x2": lambda: unet(4, 2),
    "unet-4x4": lambda: unet(4, 4, 256),
    "unet-5x2": lambda: unet(5, 2, 128, 65_536, timed=False),
    "inception-12": lambda: inception(12),
    "inception-60": lambda: inception(60, 1),
    "moe-8": lambda: moe(12, 8),
    "moe-16": lambda: moe(24, 16),
    "towers-12": lambda: towers(12),
    "towers-24": lambda: towers(24),
    "series-parallel-60": lambda: series_parallel(60, 3),
    "series-parallel-400": lambda: series_parallel(400, 4),
    "irregular-40": lambda: irregular(40, 6, 5),
    "irregular-120": lambda: irregular(120, 4, 6),
    "irregular-400": lambda: irregular(400, 3, 7),
}


def fleet(quotient: Quotient, devices: int, *, unequal: bool = False, tight: bool = False) -> Fleet:
    """Equal devices, or half of them slower and smaller; tight: 1.2 times what they must hold in all."""
    total = int(quotient.fixed_bytes.sum())
    half = devices // 2
    shares = [(range(devices - half), 1.0), (range(devices - half, devices), 0.6)] if unequal else [(range(devices), 1)]
    parts = sum(len(numbers) * share for numbers, share in shares)
    most = int(quotient.fixed_bytes.max())
    rooms = [max(most, int(1.2 * total * share / parts)) if tight else UNLIMITED for _, share in shares]
    return Fleet(tuple(Kind(tuple(row), room) for (row, _), room in zip(shares, rooms, strict=True)))
