"""Graphics cards, and a plain CPU. Each figure is of the entry's source, or of one of its exceptions.

GeForce cards multiply 16-bit factors at half speed when they accumulate in float32, which is what torch asks for.
"""

from __future__ import annotations

from autosplit.catalogue.datacenter import GUIDE, PCIE_4, PCIE_5
from autosplit.catalogue.records import GIGA, Entry, Fabric, gib, tera

_ADA = "NVIDIA Ada GPU Architecture white paper, 2022"

CONSUMER: tuple[Entry, ...] = (
    Entry(
        name="RTX3060",
        also=("NVIDIA GeForce RTX 3060", "RTX3060-12GB"),
        nominal_bytes=12 * GIGA,
        flops_per_s=tera(float64=12.7 / 64, float32=12.7, tf32=12.7, bfloat16=25.4, float16=25.4, int8=101.9),
        bandwidth_bytes_per_s=360 * GIGA,
        pcie=PCIE_4,
        source="NVIDIA GeForce RTX 3060 specifications, 2021 (28 SM, 1.777 GHz)",
        exceptions=(
            GUIDE,
            ("tf32, bfloat16, float16, int8", "per SM and clock of the GA102 white paper, 2021, x 28 SM x 1.777 GHz"),
        ),
    ),
    Entry(
        name="RTX3090",
        also=("NVIDIA GeForce RTX 3090", "RTX3090-24GB"),
        nominal_bytes=24 * GIGA,
        seen_bytes=gib(23.59),
        flops_per_s=tera(float64=35.6 / 64, float32=35.6, tf32=35.6, bfloat16=71, float16=71, int8=284),
        bandwidth_bytes_per_s=936 * GIGA,
        pcie=PCIE_4,
        source="NVIDIA Ampere GA102 GPU Architecture white paper, 2021",
        exceptions=(GUIDE,),
    ),
    Entry(
        name="RTX4080",
        also=("NVIDIA GeForce RTX 4080", "RTX4080-16GB"),
        nominal_bytes=16 * GIGA,
        flops_per_s=tera(
            float64=48.7 / 64, float32=48.7, tf32=48.7, bfloat16=97.5, float16=97.5, float8=194.9, int8=389.9
        ),
        bandwidth_bytes_per_s=716_800_000_000,
        pcie=PCIE_4,
        source=_ADA,
        exceptions=(GUIDE,),
    ),
    Entry(
        name="RTX4090",
        also=("NVIDIA GeForce RTX 4090", "RTX4090-24GB"),
        nominal_bytes=24 * GIGA,
        seen_bytes=gib(23.52),
        flops_per_s=tera(
            float64=82.6 / 64, float32=82.6, tf32=82.6, bfloat16=165.2, float16=165.2, float8=330.3, int8=660.6
        ),
        bandwidth_bytes_per_s=1_008 * GIGA,
        pcie=PCIE_4,
        source=_ADA,
        exceptions=(GUIDE,),
    ),
    Entry(
        name="RTX5090",
        also=("NVIDIA GeForce RTX 5090", "RTX5090-32GB"),
        nominal_bytes=32 * GIGA,
        seen_bytes=gib(31.36),
        flops_per_s=tera(
            float64=104.8 / 64, float32=104.8, tf32=104.8, bfloat16=209.5, float16=209.5, float8=419, int8=838
        ),
        bandwidth_bytes_per_s=1_792 * GIGA,
        pcie=PCIE_5,
        source="NVIDIA RTX Blackwell GPU Architecture white paper, 2025",
        exceptions=(GUIDE,),
    ),
)

CPU = Entry(
    name="cpu",
    nominal_bytes=0,
    flops_per_s=tera(float64=0.05, float32=0.1),
    bandwidth_bytes_per_s=25_600_000_000,
    pcie=Fabric(
        name="host memory",
        bandwidth_bytes_per_s=25_600_000_000,
        source="JEDEC JESD79-4, 2012: one channel of DDR4-3200",
    ),
    source="assumed: a core of 3 GHz with 8-wide fused multiply-add, rounded",
    exceptions=(("memory bandwidth", "JEDEC JESD79-4, 2012: one channel of DDR4-3200"),),
)
"""A plain CPU: an assumption rather than a product; its memory is the host's own."""
