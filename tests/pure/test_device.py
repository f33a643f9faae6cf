"""Devices, links, clusters: what they refuse, specs, and the file form."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autosplit import catalogue
from autosplit.catalogue import RESERVE_BYTES
from autosplit.device import (
    HOST,
    Cluster,
    Device,
    Link,
    Rates,
    cluster_of,
    described,
    from_data,
    is_described,
    parse_cluster,
    read_cluster,
    to_toml,
)
from autosplit.errors import AutosplitError, DeviceError, PlanError
from autosplit.placement import Plan

MOST = 2**63 - 1


def device(name: str) -> Device:
    return Device(name=name, kind="k", memory_bytes=1)


def link(src: str, dst: str, bandwidth: int = 10**9, latency_ns: int = 5) -> Link:
    return Link(src=src, dst=dst, bandwidth_bytes_per_s=bandwidth, latency_ns=latency_ns)


# ---------------------------------------------------------------- records


def test_a_cluster_has_devices_and_each_once():
    with pytest.raises(DeviceError, match="no devices"):
        Cluster(devices=())
    with pytest.raises(DeviceError, match="'a' appears more than once"):
        Cluster(devices=(device("a"), device("b"), device("a")))


def test_unknown_device_is_named_with_the_known_ones():
    with pytest.raises(DeviceError, match="unknown device 'c': this cluster has a, b"):
        Cluster(devices=(device("a"), device("b"))).device("c")
    assert Cluster(devices=(device("a"),)).device("a").name == "a"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"memory_bytes": -1}, "memory_bytes is -1; it must be 0 to"),
        ({"memory_bytes": 2**63}, "memory_bytes is 9223372036854775808"),
        ({"launch_ns": -1}, "launch_ns is -1"),
        ({"bandwidth_bytes_per_s": 0}, "bandwidth_bytes_per_s is 0; it must be 1 to"),
        ({"flops_per_s": Rates(float32=0)}, "flops_per_s.float32 is 0"),
        ({"flops_per_s": Rates(float32=1, int8=-5)}, "flops_per_s.int8 is -5"),
    ],
)
def test_a_device_refuses_figures_that_cannot_be(fields, says):
    with pytest.raises(DeviceError, match=f"device 'a': {says}"):
        Device(**{"name": "a", "kind": "k", "memory_bytes": 1} | fields)


@pytest.mark.parametrize(
    ("links", "says"),
    [
        ((("a", "a"),), "a link joins two devices"),
        ((("a", "c"),), "'a' -> 'c': 'c' is not one of a, b, host"),
        ((("a", "b"), ("a", "b")), "two links in one direction"),
        ((("a", "b", 0),), "bandwidth_bytes_per_s is 0"),
        ((("a", "b", 1, -1),), "latency_ns is -1"),
    ],
)
def test_links_that_cannot_be(links, says):
    with pytest.raises(DeviceError, match=says):
        Cluster(devices=(device("a"), device("b")), links=tuple(link(*ends) for ends in links))


def test_transfer_time_is_latency_and_bytes_over_bandwidth():
    cluster = Cluster(
        devices=(device("a"), device("b")),
        links=(link("a", "b"), link(HOST, "a", 10**6, 7)),
        default_bandwidth_bytes_per_s=10**8,
        default_latency_ns=1,
    )
    assert cluster.transfer_ns("a", "b", 100) == 105
    assert cluster.transfer_ns("b", "a", 100) == 1001
    assert cluster.transfer_ns("a", "a", 100) == 0
    assert cluster.transfer_ns(HOST, "a", 1) == 1007
    assert cluster.link("a", "b") == link("a", "b")
    assert cluster.link("b", "a") == link("b", "a", 10**8, 1)


def test_rates_by_format():
    rates = Rates(float32=10, float64=5, tf32=80, bfloat16=160, float8=320)
    found = Device(name="a", kind="k", memory_bytes=1, flops_per_s=rates)
    asked = ("float32", "float64", "complex128", "tf32", "bfloat16", "float8_e5m2", "float8_e4m3fn")
    assert [found.rate(dtype) for dtype in asked] == [10, 5, 5, 80, 160, 320, 320]
    unknown = ("float16", "int8", "uint8", "complex64", "bool", "of", "__class__")
    assert [found.rate(dtype) for dtype in unknown] == [10] * 7


def test_a_plan_file_with_a_device_that_cannot_be_is_a_plan_error():
    with pytest.raises(PlanError, match="no devices"):
        Plan.from_json(b'{"strategy": "single", "mode": "infer", "cluster": {"devices": []}}')


SPEEDS = st.sampled_from([(10, 1), (20, 1)])


@st.composite
def small_clusters(draw):
    """Few devices of few kinds and few speeds, so that many can be swapped."""
    names = [f"d{i}" for i in range(draw(st.integers(1, 4)))]
    devices = tuple(Device(name=name, kind=draw(st.sampled_from("kl")), memory_bytes=1) for name in names)
    ends = [(a, b) for a in (*names, HOST) for b in (*names, HOST) if a != b]
    links = [link(a, b, *draw(SPEEDS)) for a, b in ends if draw(st.booleans())]
    return Cluster(devices=devices, links=tuple(links), default_bandwidth_bytes_per_s=10, default_latency_ns=1)


def can_be_swapped(cluster, a, b):
    """By trying: no transfer takes another time when the two change places."""
    swapped = {a: b, b: a}
    ends = (*cluster.names, HOST)
    same = cluster.device(a).kind == cluster.device(b).kind
    return same and all(
        cluster.transfer_ns(x, y, 10**9) == cluster.transfer_ns(swapped.get(x, x), swapped.get(y, y), 10**9)
        for x in ends
        for y in ends
        if x != y
    )


@settings(max_examples=500)
@given(small_clusters())
def test_devices_that_can_be_swapped(cluster):
    for i, name in enumerate(cluster.names):
        first = next(other for other in cluster.names[: i + 1] if can_be_swapped(cluster, other, name))
        assert cluster.first_alike[name] == first


def test_devices_of_a_spec_can_be_swapped():
    """Their links with the host are not the default: the solver must still know that they are alike."""
    assert set(parse_cluster("4xA100-80GB").first_alike.values()) == {"gpu:0"}
    assert set(parse_cluster("2xA100-80GB,2xH100-SXM").first_alike.values()) == {"gpu:0", "gpu:2"}
    assert len(set(parse_cluster("4096xH200").first_alike.values())) == 1


# ---------------------------------------------------------------- specs


def test_spec():
    cluster = parse_cluster("2x24GiB, 1x8GB,512MiB")
    assert cluster.names == ("gpu:0", "gpu:1", "gpu:2", "gpu:3")
    assert [d.memory_bytes for d in cluster.devices] == [24 * 2**30, 24 * 2**30, 8 * 10**9, 512 * 2**20]
    assert cluster.devices[0].kind == cluster.devices[1].kind != cluster.devices[2].kind
    assert cluster.links == ()
    assert "nothing is known of its speed: taken as 50 TFLOP/s" in cluster.assumptions[0]


@pytest.mark.parametrize(
    "spec", ["2xRTX4090,A100-80GB", "2 x rtx 4090 , NVIDIA A100-SXM4-80GB", "2XGeForce_RTX-4090,a100-80gb"]
)
def test_spec_by_name(spec):
    cluster = parse_cluster(spec)
    assert [d.kind for d in cluster.devices] == ["RTX4090", "RTX4090", "A100-80GB"]
    entry = catalogue.find("A100-80GB")
    a100 = cluster.devices[2]
    assert (a100.name, a100.memory_bytes) == ("gpu:2", entry.total_bytes - RESERVE_BYTES)
    assert (a100.flops_per_s, a100.bandwidth_bytes_per_s) == (entry.flops_per_s, entry.bandwidth_bytes_per_s)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("0x24GiB", "asks for zero devices"),
        ("0xH200", "asks for zero devices"),
        ("", "is not of the form"),
        ("2y24GiB", "is not of the form"),
        ("2x24GiB,", "is not of the form"),
        ("9999x1GiB", "9999 devices; the limit is 4096"),
        ("4000xA10,97xT4", "4097 devices; the limit is 4096"),
        ("2x24Gb", "means bits"),
        ("2x0GiB", "without memory"),
        ("A100", "did you mean A100-40GB or A100-80GB or"),
        ("2xRTX4O90", "did you mean RTX4090 or"),
        ("2xToaster", "`autosplit devices --catalogue` lists"),
        ("2xcpu", "is not of the form"),
        ("1000xA100-80GB,1xT4", "999000 links of different speeds; the limit is 100000"),
    ],
)
def test_spec_refused(spec, message):
    with pytest.raises(AutosplitError, match=message):
        parse_cluster(spec)


def test_what_is_described():
    for spec in ("2x24GiB", "24GiB", "4xA100-80GB", "rtx 4090", "H200,T4", "2xnonsense", "8 x 1GB"):
        assert is_described(spec), spec
    for spec in ("cuda", "cuda:0", "cuda:0,cuda:1", "sim", "cpu", "auto", "", "A1000", "24"):
        assert not is_described(spec), spec


def test_described_devices_are_numbered():
    assert described([("A100", 7), ("H100", 9)]).devices[1] == Device(name="gpu:1", kind="H100", memory_bytes=9)


def test_links_of_the_catalogue():
    alike = parse_cluster("4xA100-80GB")
    assert {alike.link(a, b).bandwidth_bytes_per_s for a in alike.names for b in alike.names if a != b} == {300 * 10**9}
    for ends in ((HOST, "gpu:3"), ("gpu:0", HOST)):  # not over NVLink
        assert alike.link(*ends).bandwidth_bytes_per_s == 32 * 10**9
    assert any("NVLink 3" in line and "300 GB/s" in line for line in alike.assumptions)

    mixed = parse_cluster("2xA100-80GB,2xH100-SXM,24GiB")
    speeds = {("gpu:0", "gpu:1"): 300, ("gpu:2", "gpu:3"): 450, ("gpu:1", "gpu:2"): 32, ("gpu:3", "gpu:4"): 25}
    speeds |= {(HOST, "gpu:3"): 64, (HOST, "gpu:0"): 32, (HOST, "gpu:4"): 25}
    for (a, b), speed in speeds.items():
        assert mixed.link(a, b).bandwidth_bytes_per_s == mixed.link(b, a).bandwidth_bytes_per_s == speed * 10**9


def test_many_devices_of_one_kind_have_few_links():
    cluster = parse_cluster("4096xH200")
    assert len(cluster.links) == 2 * 4096  # with the host; the others are the default
    assert cluster.link("gpu:0", "gpu:4095").bandwidth_bytes_per_s == 450 * 10**9


# ---------------------------------------------------------------- files

_positive, _count = st.integers(1, MOST), st.integers(0, MOST)
_rates = st.builds(
    Rates, float32=_positive, float64=st.none() | _positive, tf32=st.none() | _positive, int8=st.none() | _positive
)


@st.composite
def clusters(draw):
    names = draw(st.lists(st.text(), min_size=1, max_size=4, unique=True).filter(lambda names: HOST not in names))
    devices = tuple(
        Device(
            name=name,
            kind=draw(st.text()),
            memory_bytes=draw(_count),
            flops_per_s=draw(_rates),
            bandwidth_bytes_per_s=draw(_positive),
            launch_ns=draw(_count),
        )
        for name in names
    )
    ends = [(a, b) for a in (*names, HOST) for b in (*names, HOST) if a != b]
    chosen = draw(st.lists(st.sampled_from(ends), unique=True, max_size=4))
    return Cluster(
        devices=devices,
        links=tuple(link(a, b, draw(_positive), draw(_count)) for a, b in chosen),
        default_bandwidth_bytes_per_s=draw(_positive),
        default_latency_ns=draw(_count),
        assumptions=tuple(draw(st.lists(st.text(), max_size=3))),
    )


@given(clusters())
def test_a_cluster_written_reads_back_equal(cluster):
    assert from_data(tomllib.loads(to_toml(cluster))) == cluster


def outcome(path):
    """The cluster in a file, or the error that it is refused with; anything else is raised."""
    try:
        return read_cluster(path)
    except DeviceError as error:
        return error


WRITTEN = to_toml(parse_cluster("2xA100-80GB,T4"))


@given(
    st.lists(st.tuples(st.integers(0, len(WRITTEN)), st.integers(0, 9), st.text(max_size=6)), min_size=1, max_size=3)
)
def test_a_mutated_file_is_a_cluster_or_a_device_error(tmp_path_factory, mutations):
    text = WRITTEN
    for at, gone, new in mutations:
        text = text[:at] + new + text[at + gone :]
    path = tmp_path_factory.getbasetemp() / "mutated.toml"
    path.write_text(text)
    assert str(outcome(path)).startswith(("Cluster(", f"cluster file {str(path)!r}: "))


def test_mutations_are_noticed():
    """The test above would also pass were every file read as it was."""
    refused = 0
    for at in range(0, len(WRITTEN), 7):
        try:
            from_data(tomllib.loads(WRITTEN[:at] + "x" + WRITTEN[at + 1 :]))
        except (DeviceError, tomllib.TOMLDecodeError):
            refused += 1
    print(f"refused {refused} of {len(WRITTEN) // 7 + 1}")
    assert refused > len(WRITTEN) // 7 // 2


DEVICE = '[[devices]]\nname = "a"\nkind = "k"\nmemory_bytes = 1\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[device]]", r"unknown key 'device': did you mean 'devices'\?"),
        (DEVICE + "memroy = 2", r"unknown key 'devices\[0\].memroy': did you mean 'memory_bytes'\?"),
        (
            DEVICE + "flops_per_s = { bf16 = 1 }",
            r"unknown key 'devices\[0\].flops_per_s.bf16': did you mean 'bfloat16'",
        ),
        (DEVICE + "flops_per_s = { zzz = 1 }", "known are float32, float64, tf32"),
        (DEVICE + "flops_per_s = { bfloat16 = 1 }", "missing required field `float32`"),
        (DEVICE + "flops_per_s = 5", r"Expected `object`, got `int` - at `\$.devices\[0\].flops_per_s`"),
        (DEVICE + "launch_ns = 1.5", "Expected `int`, got `float`"),
        (DEVICE + "launch_ns = true", "Expected `int`, got `bool`"),
        (DEVICE + "launch_ns = -3", "launch_ns is -3"),
        (DEVICE + 'bandwidth_bytes_per_s = "25GB"', "Expected `int`, got `str`"),
        ('[[devices]]\nname = "a"\nkind = "k"', "missing required field `memory_bytes`"),
        (
            DEVICE + '[[links]]\nsrc = "a"\ndst = "z"\nbandwidth_bytes_per_s = 1\nlatency_ns = 1',
            "'z' is not one of a, host",
        ),
        (DEVICE + DEVICE, "'a' appears more than once"),
        ("devices = []", "no devices"),
        ("devices = 3", "Expected `array`, got `int`"),
        ("devices = [3]", "Expected `object`, got `int`"),
        ("", "missing required field `devices`"),
        ("x = [" * 5000, "RecursionError|recursion|unclosed|Invalid|nest"),
    ],
)
def test_a_file_that_is_refused(tmp_path, text, says):
    path = tmp_path / "cluster.toml"
    path.write_text(text)
    with pytest.raises(DeviceError, match=says) as caught:
        read_cluster(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(DeviceError, match="No such file"):
        read_cluster(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(DeviceError, match="codec can't decode"):
        read_cluster(tmp_path / "bytes.toml")
    with pytest.raises(DeviceError, match="Is a directory"):
        read_cluster(tmp_path)
    with open(tmp_path / "large.toml", "wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(DeviceError, match="more than 16777216 bytes"):
        read_cluster(tmp_path / "large.toml")


def test_a_plain_number_is_no_rates() -> None:
    with pytest.raises(DeviceError, match="flops_per_s is 1000"):
        Device(name="a", kind="k", memory_bytes=1, flops_per_s=1000)


# ---------------------------------------------------------------- what a caller gives


def test_every_form_of_described_devices(tmp_path):
    two = parse_cluster("2x24GiB")
    path = tmp_path / "cluster.toml"
    path.write_text(to_toml(two))
    for given_as in (two, "2x24GiB", str(path), tomllib.loads(to_toml(two))):
        assert cluster_of(given_as) == two
    records = [device("a"), device("b")]
    assert cluster_of(records).devices == tuple(records)
    assert cluster_of(tuple(records)) == cluster_of(records)
    assert cluster_of(records).assumptions[-1].startswith("links: not measured")
    assert cluster_of({records[1]: "2KiB"}).devices[0].memory_bytes == 2048


@pytest.mark.parametrize("devices", ["auto", "cuda:0", "cuda:0,cuda:1", "", 7, None, [device("a"), "cpu"], {"cpu": 5}])
def test_what_only_torch_knows_is_refused_with_what_to_give(devices):
    with pytest.raises(DeviceError, match=r"expected described devices: a spec such as '2x24GiB'"):
        cluster_of(devices)


@pytest.mark.parametrize("devices", [[], (), {}])
def test_no_devices(devices):
    with pytest.raises(DeviceError, match="no devices: pass at least one"):
        cluster_of(devices)
