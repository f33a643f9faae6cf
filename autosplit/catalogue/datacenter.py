"""Accelerators for servers. Each figure is of the entry's source, or of one of its exceptions."""

from __future__ import annotations

from autosplit.catalogue.records import GIGA, Entry, Fabric, gib, tera

PCIE_3 = Fabric(name="PCIe 3 x16", bandwidth_bytes_per_s=16 * GIGA, source="PCI-SIG, PCI Express 3.0, 2010")
PCIE_4 = Fabric(name="PCIe 4 x16", bandwidth_bytes_per_s=32 * GIGA, source="PCI-SIG, PCI Express 4.0, 2017")
PCIE_5 = Fabric(name="PCIe 5 x16", bandwidth_bytes_per_s=64 * GIGA, source="PCI-SIG, PCI Express 5.0, 2019")
NVLINK_2 = Fabric(  # of the six links of a V100, one: without a switch, pairs have two, one or none
    name="NVLink 2", bandwidth_bytes_per_s=25 * GIGA, source="NVIDIA Tesla V100 white paper, 2017: one link"
)
NVLINK_3 = Fabric(
    name="NVLink 3", bandwidth_bytes_per_s=300 * GIGA, source="NVIDIA A100 data sheet, 2021: pairs on a switch"
)
NVLINK_4 = Fabric(
    name="NVLink 4", bandwidth_bytes_per_s=450 * GIGA, source="NVIDIA H100 data sheet, 2023: pairs on a switch"
)
NVLINK_5 = Fabric(
    name="NVLink 5",
    bandwidth_bytes_per_s=900 * GIGA,
    source="NVIDIA Blackwell Architecture Technical Brief, 2024: pairs on a switch",
)
INFINITY_FABRIC = Fabric(  # of the seven links of an MI300X, the one to each other of eight
    name="Infinity Fabric", bandwidth_bytes_per_s=64 * GIGA, source="AMD Instinct MI300X data sheet, 2023: one link"
)

GUIDE = ("float64", "CUDA C++ Programming Guide, arithmetic throughput, 2024: a fixed share of float32's")

_A100 = tera(float64=19.5, float32=19.5, tf32=156, bfloat16=312, float16=312, int8=624)
_A100_SHEET = "NVIDIA A100 Tensor Core GPU data sheet, 2021"
_H100 = tera(float64=67, float32=67, tf32=494.5, bfloat16=989.5, float16=989.5, float8=1979, int8=1979)
_H100_SHEET = "NVIDIA H100 Tensor Core GPU data sheet, 2023, with sparsity, halved"
_V100 = tera(float64=7.8, float32=15.7, float16=125)
_V100_PCIE = tera(float64=7, float32=14, float16=112)
_V100_SHEET = "NVIDIA V100 Tensor Core GPU data sheet, 2020"

DATACENTER: tuple[Entry, ...] = (
    Entry(
        name="A100-40GB",
        also=("NVIDIA A100-SXM4-40GB", "A100-SXM-40GB", "A100-40GB-SXM"),
        nominal_bytes=40 * GIGA,
        seen_bytes=gib(39.39),
        flops_per_s=_A100,
        bandwidth_bytes_per_s=1_555 * GIGA,
        fabric=NVLINK_3,
        pcie=PCIE_4,
        source="NVIDIA A100 Tensor Core GPU data sheet, 2020",
    ),
    Entry(
        name="A100-80GB",
        also=("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB", "A100-80GB-SXM"),
        nominal_bytes=80 * GIGA,
        seen_bytes=gib(79.15),
        flops_per_s=_A100,
        bandwidth_bytes_per_s=2_039 * GIGA,
        fabric=NVLINK_3,
        pcie=PCIE_4,
        source=_A100_SHEET,
    ),
    Entry(
        name="A100-40GB-PCIe",
        also=("NVIDIA A100-PCIE-40GB",),
        nominal_bytes=40 * GIGA,
        seen_bytes=gib(39.39),
        flops_per_s=_A100,
        bandwidth_bytes_per_s=1_555 * GIGA,
        pcie=PCIE_4,
        source="NVIDIA A100 Tensor Core GPU data sheet, 2020",
    ),
    Entry(
        name="A100-80GB-PCIe",
        also=("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"),
        nominal_bytes=80 * GIGA,
        seen_bytes=gib(79.15),
        flops_per_s=_A100,
        bandwidth_bytes_per_s=1_935 * GIGA,
        pcie=PCIE_4,
        source=_A100_SHEET,
    ),
    Entry(
        name="H100-SXM",
        also=("NVIDIA H100 80GB HBM3", "H100-SXM5", "H100-80GB-SXM", "H100-SXM-80GB"),
        nominal_bytes=80 * GIGA,
        seen_bytes=gib(79.11),
        flops_per_s=_H100,
        bandwidth_bytes_per_s=3_350 * GIGA,
        fabric=NVLINK_4,
        pcie=PCIE_5,
        source=_H100_SHEET,
    ),
    Entry(
        name="H100-PCIe",
        also=("NVIDIA H100 PCIe", "H100-80GB-PCIe", "H100-PCIe-80GB"),
        nominal_bytes=80 * GIGA,
        flops_per_s=tera(float64=51, float32=51, tf32=378, bfloat16=756.5, float16=756.5, float8=1_513, int8=1_513),
        bandwidth_bytes_per_s=2_000 * GIGA,
        pcie=PCIE_5,
        source=_H100_SHEET,
    ),
    Entry(
        name="H200",
        also=("NVIDIA H200", "H200-SXM", "H200-141GB"),
        nominal_bytes=141 * GIGA,
        seen_bytes=gib(139.72),
        flops_per_s=_H100,
        bandwidth_bytes_per_s=4_800 * GIGA,
        fabric=NVLINK_4,
        pcie=PCIE_5,
        source="NVIDIA H200 Tensor Core GPU data sheet, 2024, with sparsity, halved",
    ),
    Entry(
        name="B200",
        also=("NVIDIA B200", "B200-180GB"),
        nominal_bytes=180 * GIGA,
        seen_bytes=gib(178.35),
        flops_per_s=tera(float64=40, float32=80, tf32=1_100, bfloat16=2_250, float16=2_250, float8=4_500, int8=4_500),
        bandwidth_bytes_per_s=8_000 * GIGA,
        fabric=NVLINK_5,
        pcie=PCIE_5,
        source="NVIDIA Blackwell Architecture Technical Brief, 2024 (HGX B200, 1000 W), with sparsity, halved",
        exceptions=(("nominal memory", "NVIDIA DGX B200 data sheet, 2024: 1,440 GB for eight"),),
    ),
    Entry(
        name="L4",
        also=("NVIDIA L4",),
        nominal_bytes=24 * GIGA,
        seen_bytes=gib(22.03),
        flops_per_s=tera(float64=30.3 / 64, float32=30.3, tf32=60, bfloat16=121, float16=121, float8=242.5, int8=242.5),
        bandwidth_bytes_per_s=300 * GIGA,
        pcie=PCIE_4,
        source="NVIDIA L4 Tensor Core GPU data sheet, 2023, with sparsity, halved",
        exceptions=(GUIDE,),
    ),
    Entry(
        name="L40S",
        also=("NVIDIA L40S",),
        nominal_bytes=48 * GIGA,
        seen_bytes=gib(44.42),
        flops_per_s=tera(
            float64=91.6 / 64, float32=91.6, tf32=183, bfloat16=362.05, float16=362.05, float8=733, int8=733
        ),
        bandwidth_bytes_per_s=864 * GIGA,
        pcie=PCIE_4,
        source="NVIDIA L40S data sheet, 2023",
        exceptions=(GUIDE,),
    ),
    Entry(
        name="A10",
        also=("NVIDIA A10",),
        nominal_bytes=24 * GIGA,
        seen_bytes=gib(22.06),
        flops_per_s=tera(float64=31.2 / 64, float32=31.2, tf32=62.5, bfloat16=125, float16=125, int8=250),
        bandwidth_bytes_per_s=600 * GIGA,
        pcie=PCIE_4,
        source="NVIDIA A10 Tensor Core GPU data sheet, 2021",
        exceptions=(GUIDE,),
    ),
    Entry(
        name="T4",
        also=("Tesla T4",),
        nominal_bytes=16 * GIGA,
        seen_bytes=gib(14.56),
        flops_per_s=tera(float64=8.1 / 32, float32=8.1, float16=65, int8=130),
        bandwidth_bytes_per_s=300 * GIGA,
        pcie=PCIE_3,
        source="NVIDIA T4 Tensor Core GPU data sheet, 2019",
        exceptions=(GUIDE,),
    ),
    Entry(
        name="V100-16GB",
        also=("Tesla V100-SXM2-16GB", "V100-SXM-16GB"),
        nominal_bytes=16 * GIGA,
        seen_bytes=gib(15.77),
        flops_per_s=_V100,
        bandwidth_bytes_per_s=900 * GIGA,
        fabric=NVLINK_2,
        pcie=PCIE_3,
        source=_V100_SHEET,
    ),
    Entry(
        name="V100-32GB",
        also=("Tesla V100-SXM2-32GB", "V100-SXM-32GB"),
        nominal_bytes=32 * GIGA,
        flops_per_s=_V100,
        bandwidth_bytes_per_s=900 * GIGA,
        fabric=NVLINK_2,
        pcie=PCIE_3,
        source=_V100_SHEET,
    ),
    Entry(
        name="V100-16GB-PCIe",
        also=("Tesla V100-PCIE-16GB",),
        nominal_bytes=16 * GIGA,
        seen_bytes=gib(15.77),
        flops_per_s=_V100_PCIE,
        bandwidth_bytes_per_s=900 * GIGA,
        pcie=PCIE_3,
        source=_V100_SHEET,
    ),
    Entry(
        name="V100-32GB-PCIe",
        also=("Tesla V100-PCIE-32GB",),
        nominal_bytes=32 * GIGA,
        flops_per_s=_V100_PCIE,
        bandwidth_bytes_per_s=900 * GIGA,
        pcie=PCIE_3,
        source=_V100_SHEET,
    ),
    Entry(
        name="MI300X",
        also=("AMD Instinct MI300X", "AMD Instinct MI300X OAM"),
        nominal_bytes=192 * GIGA,
        seen_bytes=gib(191.69),
        flops_per_s=tera(
            float64=163.4, float32=163.4, tf32=653.7, bfloat16=1_307.4, float16=1_307.4, float8=2_614.9, int8=2_614.9
        ),
        bandwidth_bytes_per_s=5_300 * GIGA,
        fabric=INFINITY_FABRIC,
        pcie=PCIE_5,
        source="AMD Instinct MI300X data sheet, 2023",
    ),
)
