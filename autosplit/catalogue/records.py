"""The records of the catalogue: matrix rates, what joins devices, and one device."""

from __future__ import annotations

import msgspec

RESERVE_BYTES = 2**30
"""Taken off the memory of a catalogue device for what no plan counts: the context, library workspaces, fragments."""

ASSUMED_LAUNCH_NS = 5_000
"""Time to start one operator. No data sheet states it: it is an assumption until it is measured."""

SEEN = "total memory in torch's out-of-memory messages in public reports and logs, the least found, 2021-2026"
"""Source of ``Entry.seen_bytes``: the driver keeps some of the nominal memory (ECC, firmware) for itself."""

GIGA, TERA = 10**9, 10**12


class Rates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Dense matrix rates in flop/s (int8: operations/s) by the format of the factors; None is unknown.

    A multiplication and an addition are two operations. Sparsity is never counted. float16, bfloat16 and float8
    accumulate in float32, as torch's matmul does.
    """

    float32: int
    float64: int | None = None
    tf32: int | None = None
    bfloat16: int | None = None
    float16: int | None = None
    float8: int | None = None
    int8: int | None = None

    def of(self, dtype: str) -> int:
        """The rate for a dtype as torch names it, without "torch."; what is unknown takes float32's.

        "tf32" has to be asked for by that name: float32 factors are multiplied in it only if torch.backends says so.

        >>> Rates(float32=10, float8=40).of("float8_e4m3fn"), Rates(float32=10).of("bfloat16")
        (40, 10)
        """
        field = "float8" if dtype.startswith("float8") else "float64" if dtype == "complex128" else dtype
        rate: int | None = getattr(self, field) if field in self.__struct_fields__ else None
        return self.float32 if rate is None else rate


class Fabric(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What joins devices: bytes per second from one device to one other, in one direction."""

    name: str
    bandwidth_bytes_per_s: int
    source: str


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device of the catalogue.

    Attributes:
        name: as in a spec, "2xA100-80GB".
        also: other names: torch's (``torch.cuda.get_device_name``), and common ones.
        nominal_bytes: memory as the vendor states it, a GB taken as 10^9 bytes; 0 when it is the host's own.
        seen_bytes: total memory as torch shows it (see SEEN); None when no report was found.
        flops_per_s: dense matrix rates.
        bandwidth_bytes_per_s: of the device's memory.
        fabric: joins it directly to devices with the same fabric; None is unknown or nothing.
        pcie: joins it to everything else.
        source: of every figure that ``exceptions`` does not name.
        exceptions: (figures, source) pairs for figures from elsewhere.
    """

    name: str
    also: tuple[str, ...] = ()
    nominal_bytes: int
    seen_bytes: int | None = None
    flops_per_s: Rates
    bandwidth_bytes_per_s: int
    fabric: Fabric | None = None
    pcie: Fabric
    source: str
    exceptions: tuple[tuple[str, str], ...] = ()

    @property
    def total_bytes(self) -> int:
        """Memory as the driver shows it; where no report was found, the nominal memory."""
        return self.nominal_bytes if self.seen_bytes is None else self.seen_bytes

    @property
    def usable_bytes(self) -> int:
        """What a plan may use: the total less RESERVE_BYTES."""
        return max(0, self.total_bytes - RESERVE_BYTES)

    @property
    def sources(self) -> tuple[str, ...]:
        """One line for each source; after the first, with the figures that it gave."""
        seen = () if self.seen_bytes is None else (("memory", SEEN),)
        return (self.source, *(f"{figures}: {source}" for figures, source in (*self.exceptions, *seen)))


def gib(number: float) -> int:
    """Bytes in ``number`` GiB."""
    return round(number * 2**30)


def tera(**rates: float) -> Rates:
    """Rates given in tera-operations per second."""
    return Rates(**{dtype: round(rate * TERA) for dtype, rate in rates.items()})
