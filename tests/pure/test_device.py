"""Devices and clusters."""

import pytest

from autosplit.device import Cluster, Device, Link, described, parse_cluster
from autosplit.errors import AutosplitError, DeviceError


def device(name: str) -> Device:
    return Device(name=name, kind="k", memory_bytes=1)


def test_a_cluster_has_devices_and_each_once():
    with pytest.raises(DeviceError, match="no devices"):
        Cluster(devices=())
    with pytest.raises(DeviceError, match="'a' appears more than once"):
        Cluster(devices=(device("a"), device("b"), device("a")))


def test_unknown_device_is_named_with_the_known_ones():
    with pytest.raises(DeviceError, match="unknown device 'c': this cluster has a, b"):
        Cluster(devices=(device("a"), device("b"))).device("c")
    assert Cluster(devices=(device("a"),)).device("a").name == "a"


def test_spec():
    cluster = parse_cluster("2x24GiB, 1x8GB,512MiB")
    assert cluster.names == ("gpu:0", "gpu:1", "gpu:2", "gpu:3")
    assert [d.memory_bytes for d in cluster.devices] == [24 * 2**30, 24 * 2**30, 8 * 10**9, 512 * 2**20]
    assert cluster.devices[0].kind == cluster.devices[1].kind != cluster.devices[2].kind


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0x24GiB", "asks for zero devices"),
        ("", "is not of the form"),
        ("2y24GiB", "is not of the form"),
        ("2x24GiB,", "is not of the form"),
        ("9999x1GiB", "the limit is 4096"),
        ("2x24Gb", "means bits"),
    ],
)
def test_spec_refused(spec, message):
    with pytest.raises(AutosplitError, match=message):
        parse_cluster(spec)


def test_transfer_time_is_latency_and_bytes_over_bandwidth():
    cluster = Cluster(
        devices=(device("a"), device("b")),
        links=(Link(src="a", dst="b", bandwidth_bytes_per_s=10**9, latency_ns=5),),
        default_bandwidth_bytes_per_s=10**8,
        default_latency_ns=1,
    )
    assert cluster.transfer_ns("a", "b", 100) == 105
    assert cluster.transfer_ns("b", "a", 100) == 1001
    assert cluster.transfer_ns("a", "a", 100) == 0


def test_described_devices_are_numbered():
    assert described([("A100", 7), ("H100", 9)]).devices[1] == Device(name="gpu:1", kind="H100", memory_bytes=9)
