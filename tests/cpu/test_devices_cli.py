"""``autosplit devices``: what it lists without torch, what it measures, what it writes, and how it fails."""

import json
import resource
import subprocess
import sys

import msgspec
import pytest
import torch

from autosplit import sim
from autosplit.catalogue import ENTRIES, RESERVE_BYTES
from autosplit.cli import main
from autosplit.device import Cluster, parse_cluster, read_cluster
from autosplit.hardware import links

TORCHLESS = """
import sys
from autosplit.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""
MIB = 2**20


def run(capsys, *words):
    """Exit code, the document on stdout, and stderr."""
    code = main(["devices", *words, "--json"])
    said = capsys.readouterr()
    assert said.out.count("\n") == 1
    return code, json.loads(said.out), said.err


def cluster_of(document):
    return msgspec.convert(document["cluster"], Cluster)


@pytest.mark.parametrize(
    "words", [["--help"], ["4xA100-80GB"], ["--catalogue"], ["FILE"], ["2x24GiB", "--json"], ["2xA1"]]
)
def test_what_needs_no_torch(tmp_path, words):
    path = tmp_path / "cluster.toml"
    if words == ["FILE"]:
        assert main(["devices", "2xT4", "--out", str(path)]) == 0
        words = [str(path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", TORCHLESS, "devices", *words], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"autosplit devices {' '.join(words)}: {cpu_s:.2f} s of CPU")
    assert done.returncode == (2 if words == ["2xA1"] else 0), done.stderr
    assert cpu_s < 2  # 0.3 where nothing else runs; torch alone takes more


def test_a_described_spec(capsys):
    code, document, err = run(capsys, "4xA100-80GB,2x24GiB")
    assert (code, err) == (0, "")
    assert cluster_of(document) == parse_cluster("4xA100-80GB,2x24GiB")
    assert document["figures"]["gpu:0"] == "catalogue"
    assert document["figures"]["gpu:5"] == "assumed"
    assert document["total_bytes"] == {
        f"gpu:{i}": document["cluster"]["devices"][0]["memory_bytes"] + RESERVE_BYTES for i in range(4)
    }


def test_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["devices", "4xA100-80GB,1x24GiB"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == "gpu:0-3 A100-80GB 78.2 GiB 79.2 GiB 19.5 312 2039 catalogue"
    assert " ".join(lines[2].split()) == "gpu:4 24GiB 24.0 GiB unknown 50 50 1000 assumed"
    assert any("300.0 GB/s" in line for line in lines)
    assert any(line.startswith(" - devices: A100-80GB: peak rates of NVIDIA A100") for line in lines)
    assert max(map(len, lines)) <= 80


def test_hostile_names_are_printed_as_text(capsys, tmp_path):
    (tmp_path / "c.toml").write_text('[[devices]]\nname = "[red]\\u001b[2J"\nkind = "x"\nmemory_bytes = 1\n')
    assert main(["devices", str(tmp_path / "c.toml")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]�[2J" in out


def test_the_catalogue_is_listed_with_its_sources(capsys):
    code, document, _ = run(capsys, "--catalogue")
    assert code == 0
    assert [entry["name"] for entry in document["catalogue"]] == [entry.name for entry in ENTRIES]
    assert all(entry["sources"] for entry in document["catalogue"])
    assert main(["devices", "--catalogue"]) == 0
    out = capsys.readouterr().out
    assert all(entry.name in out for entry in ENTRIES)
    assert "NVIDIA T4 Tensor Core GPU data sheet, 2019" in out


def test_present_devices(capsys):
    code, document, _ = run(capsys)
    assert code == 0
    assert cluster_of(document).names == ("cpu",)
    assert document["figures"] == {"cpu": "assumed"}
    with sim.cluster("2x64MiB"):
        held = torch.ones(3 * MIB, dtype=torch.uint8, device="sim:0")
        code, document, _ = run(capsys)
        del held
    assert cluster_of(document).names == ("sim:0", "sim:1")
    assert document["total_bytes"] == {"sim:0": 64 * MIB, "sim:1": 64 * MIB}


def test_measured_links_are_written_and_read(capsys, tmp_path):
    path = tmp_path / "cluster.toml"
    with sim.cluster("2x64MiB"):
        code, document, err = run(capsys, "--measure", "--out", str(path))
        assert code == 0
        assert f"cluster saved: autosplit plan MODEL --devices {path}" in err
        found = cluster_of(document)
        assert len(found.links) == 6
        assert read_cluster(path) == found
        code, again, _ = run(capsys, str(path))
        assert (code, cluster_of(again)) == (0, found)
        code, again, _ = run(capsys, str(path), "--measure")
        assert (code, len(cluster_of(again).links)) == (0, 6)
    assert [p.name for p in tmp_path.iterdir()] == ["cluster.toml"]


def test_many_links_are_summed_up(capsys):
    with sim.cluster("5x64MiB"):
        assert main(["devices", "--measure"]) == 0
    out = capsys.readouterr().out
    assert "30 links: " in out
    assert "host" not in out.partition("rests on:")[0]


def test_nothing_to_measure_on_a_cpu(capsys):
    code, document, err = run(capsys, "--measure")
    assert (code, document["cluster"]["links"]) == (0, [])
    assert "nothing to measure: there is no accelerator" in err


def test_a_link_that_changes_data(capsys, monkeypatch, tmp_path):
    real = links._copy

    def corrupting(dst, src):
        real(dst, src)
        if (str(src.device), str(dst.device)) == ("sim:1", "sim:0"):
            dst[7] ^= 1

    monkeypatch.setattr(links, "_copy", corrupting)
    path = tmp_path / "cluster.toml"
    path.write_text("as it was")
    with sim.cluster("2x64MiB"):
        code, document, err = run(capsys, "--measure", "--out", str(path))
    assert (code, document["error"]["kind"], document["error"]["exit_code"]) == (6, "device-fault", 6)
    assert "link sim:1 -> sim:0 changes data" in document["error"]["message"]
    assert err.startswith("error[device-fault]: link sim:1 -> sim:0")
    assert path.read_text() == "as it was"


def test_an_interrupt_writes_nothing(capsys, monkeypatch, tmp_path):
    def interrupted(dst, src):
        raise KeyboardInterrupt

    monkeypatch.setattr(links, "_time_ns", interrupted)
    with sim.cluster("2x64MiB"):
        code, document, _ = run(capsys, "--measure", "--out", str(tmp_path / "cluster.toml"))
    assert (code, document["error"]["kind"]) == (130, "interrupted")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["2xA1000-80GB"], "device", "did you mean A100-80GB"),
        (["A1000-80GB"], "device", "did you mean A100-80GB"),
        (["cuda:0"], "device", "'cuda:0' is not present: present are cpu"),
        (["absent.toml"], "device", "cluster file 'absent.toml': No such file"),
        (["2xT4", "--measure"], "usage", "'2xT4' describes some that need not be"),
        (["2xT4", "--catalogue"], "usage", "give it alone"),
        (["2xT4", "--out", "no/such/folder/c.toml"], "usage", "cannot write 'no/such/folder/c.toml': No such file"),
        (["2xT4", "--out", "."], "usage", "is a directory"),
    ],
)
def test_what_is_refused(capsys, words, kind, says):
    code, document, err = run(capsys, *words)
    assert (code, document["error"]["kind"]) == (2, kind)
    assert says in document["error"]["message"]
    assert says in err


def test_a_described_file_cannot_be_measured(capsys, tmp_path):
    path = tmp_path / "c.toml"
    assert main(["devices", "2xT4", "--out", str(path)]) == 0
    capsys.readouterr()
    code, document, _ = run(capsys, str(path), "--measure")
    assert (code, document["error"]["kind"]) == (2, "device")
    assert "'gpu:0' is described, not present" in document["error"]["message"]
