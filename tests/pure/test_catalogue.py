"""The catalogue: names, plausibility of every figure, and that every figure has a source."""

import re

import pytest

from autosplit import catalogue
from autosplit.catalogue import CPU, ENTRIES, RESERVE_BYTES, Rates
from autosplit.device import Device, from_entry

BY_NAME = {entry.name: entry for entry in ENTRIES}
HALVES = ("bfloat16", "float16")


def test_the_devices_that_are_promised():
    asked = (
        "A100-40GB A100-80GB A100-40GB-PCIe A100-80GB-PCIe H100-SXM H100-PCIe H200 B200 L4 L40S A10 T4 V100-16GB "
        "V100-32GB RTX3090 RTX4090 RTX5090 RTX3060 RTX4080 MI300X"
    )
    assert set(asked.split()) <= set(BY_NAME)
    assert CPU.name not in BY_NAME


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB-PCIe"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB-PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA A10", "A10"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla V100-PCIE-32GB", "V100-32GB-PCIe"),
        ("NVIDIA GeForce RTX 3090", "RTX3090"),
        ("NVIDIA GeForce RTX 4080", "RTX4080"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_names_that_torch_reports(reported, name):
    assert catalogue.find(reported).name == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a slice of one
        "NVIDIA H200 NVL",
        "NVIDIA A10G",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
        "A100",  # of 40 or of 80 GB
        "cpu",
    ],
)
def test_names_of_other_devices(name):
    assert catalogue.find(name) is None


def test_no_name_means_two_devices():
    names = [name for entry in ENTRIES for name in (entry.name, *entry.also)]
    keys = {catalogue._key(name): name for name in names}
    for entry in ENTRIES:
        for name in (entry.name, *entry.also):
            assert catalogue.find(name) is entry
    assert len(keys) == len(catalogue._BY_KEY)


def test_near_names():
    assert catalogue.near("RTX4O90")[0] == "RTX4090"
    assert catalogue.near("a-100 80 gig")[0] == "A100-80GB"
    assert catalogue.near("H100") == ["H100-SXM", "H100-PCIe", "H200"]
    assert catalogue.near("qqqq") == catalogue.near("") == []
    assert len(catalogue.near("a")) == 4


@pytest.mark.parametrize("entry", [*ENTRIES, CPU], ids=lambda entry: entry.name)
def test_every_figure_has_a_source_with_a_year_or_is_called_assumed(entry):
    fabrics = [entry.pcie] if entry.fabric is None else [entry.pcie, entry.fabric]
    for source in (*entry.sources, *(fabric.source for fabric in fabrics)):
        assert re.search(r"\b20[012]\d\b", source) or source.startswith("assumed"), source


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_figures_are_plausible(entry):
    """A slip of a power of ten, or a rate with sparsity, breaks one of these."""
    rates = entry.flops_per_s
    assert 10 * 10**9 <= entry.nominal_bytes <= 200 * 10**9
    assert 0.9 <= entry.total_bytes / entry.nominal_bytes <= 1.08  # a GB of the vendor may be 2^30 bytes
    assert entry.usable_bytes == entry.total_bytes - RESERVE_BYTES
    assert 0.29e12 <= entry.bandwidth_bytes_per_s <= 8e12
    assert 8e12 <= rates.float32 <= 170e12
    assert rates.float64 is not None
    assert 1 / 64 <= rates.float64 / rates.float32 * 1.001 <= 1.01
    half = rates.float16
    assert 2 <= half / rates.float32 * 1.01 <= 30
    assert rates.bfloat16 in (None, half)
    if rates.tf32 is not None:
        assert half / rates.tf32 == pytest.approx(2, rel=0.03)
    if rates.float8 is not None:
        assert rates.float8 / half == pytest.approx(2, rel=0.03)
    if rates.int8 is not None:
        assert rates.int8 / half == pytest.approx(4 if entry.name.startswith("RTX") else 2, rel=0.03)


def test_devices_of_one_chip_share_their_rates():
    assert BY_NAME["H200"].flops_per_s == BY_NAME["H100-SXM"].flops_per_s
    assert BY_NAME["A100-40GB"].flops_per_s == BY_NAME["A100-80GB-PCIe"].flops_per_s
    for name, faster in (("A100-80GB-PCIe", "A100-80GB"), ("H100-PCIe", "H100-SXM")):
        assert BY_NAME[name].bandwidth_bytes_per_s < BY_NAME[faster].bandwidth_bytes_per_s


def test_a_figure_that_no_sheet_states_is_unknown():
    assert BY_NAME["T4"].flops_per_s.bfloat16 is None
    assert BY_NAME["A100-80GB"].flops_per_s.float8 is None
    assert BY_NAME["V100-16GB"].flops_per_s.tf32 is None


def test_an_entry_as_a_device():
    entry = BY_NAME["T4"]
    made = from_entry("cuda:3", entry, 5)
    assert made == Device(
        name="cuda:3",
        kind="T4",
        memory_bytes=5,
        flops_per_s=entry.flops_per_s,
        bandwidth_bytes_per_s=entry.bandwidth_bytes_per_s,
    )
    assert from_entry("a", entry).memory_bytes == entry.usable_bytes
    assert isinstance(hash(made), int)  # a key of devices={device: memory}
    assert made.flops_per_s == Rates(
        float64=253_125_000_000, float32=8_100_000_000_000, float16=65 * 10**12, int8=130 * 10**12
    )
