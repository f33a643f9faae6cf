"""Files that were made to do harm: a plan or a cluster that is refused, or one that is legal and must only be told.

refused/  each is a PlanError or a DeviceError, in words that a terminal may show
told/     names that would rewrite the screen, forge a line or be run, if they were more than names
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from autosplit.cli import main
from autosplit.device import read_cluster
from autosplit.errors import DeviceError, PlanError
from autosplit.placement import MAX_PLAN_BYTES, Plan

HERE = Path(__file__).parent
REFUSED = sorted((HERE / "refused").iterdir())
TOLD = sorted((HERE / "told").iterdir())


def ids(paths):
    return [path.name for path in paths]


def is_plain(text):
    return all(char.isprintable() or char == "\n" for char in text)


def load(path):
    return read_cluster(path) if path.suffix == ".toml" else Plan.load(path)


@pytest.mark.parametrize("path", REFUSED, ids=ids(REFUSED))
def test_it_is_refused_in_plain_words(path, capsys):
    with pytest.raises(DeviceError if path.suffix == ".toml" else PlanError) as caught:
        load(path)
    words = str(caught.value)
    assert is_plain(words)
    assert 10 < len(words) < 1000
    verb, code = (["devices"], 2) if path.suffix == ".toml" else (["show"], 5)
    assert main([*verb, str(path)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert is_plain(said.err)
    assert main([*verb, str(path), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == code


def test_there_are_as_many_as_there_were():
    assert (len(REFUSED), len(TOLD)) >= (77, 16)


@pytest.mark.parametrize("path", TOLD, ids=ids(TOLD))
@pytest.mark.parametrize("verb", ["show", "check", "diff"])
def test_it_is_told_as_plain_text(path, verb, capsys, tmp_path):
    plan = Plan.load(path)
    plan.save(tmp_path / "plan.json")
    other = HERE / "told" / "html.json"
    words = [verb, str(tmp_path / "plan.json"), *([str(other)] if verb == "diff" else [])]
    assert main(words) == 0
    said = capsys.readouterr()
    assert is_plain(said.out)
    assert said.err == ""
    assert not any(line.startswith("FORGED") for line in said.out.splitlines())
    assert main([*words, "--json"]) == 0
    document = capsys.readouterr().out
    assert "\x1b" not in document
    assert json.loads(document)
    assert is_plain(str(plan))


@pytest.mark.parametrize("path", TOLD, ids=ids(TOLD))
def test_it_is_written_as_it_was_read(path, tmp_path):
    Plan.load(path).save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == Plan.load(path)
    assert os.listdir(tmp_path) == ["plan.json"]


# ---------------------------------------------------------------- what takes more than a small file


@pytest.mark.parametrize("content", [b"[" * 10**6, b'{"a":' * 10**6, b'{"assumptions":' + b"[" * 10**6])
def test_depth_without_end(tmp_path, content):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(PlanError, match="not a plan"):
        Plan.load(path)
    toml = tmp_path / "x.toml"
    toml.write_bytes(b"devices = " + content[:100_000])
    with pytest.raises(DeviceError):
        read_cluster(toml)


def test_a_file_above_the_limit_is_not_read_whole(tmp_path):
    path = tmp_path / "x.json"
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse: nobody has so much memory
    with pytest.raises(PlanError, match=r"more than 64\.0 MiB, the most"):
        Plan.load(path)
    with pytest.raises(DeviceError, match="more than 16777216 bytes"):
        read_cluster(path)
    with pytest.raises(PlanError, match="the most that is read"):
        Plan.from_json("é" * (MAX_PLAN_BYTES // 2 + 1))


def test_many_nodes_on_many_devices_take_no_square(tmp_path):
    """4,096 devices and 200,000 nodes: checking each node against a list of devices would take minutes."""
    names = [f"d:{i}" for i in range(4096)]
    plan = json.loads((HERE / "told" / "code.json").read_bytes())
    device, used = plan["cluster"]["devices"][1], plan["prediction"]["devices"]["gpu:1"]
    plan["cluster"]["devices"] = [{**device, "name": name} for name in names]
    plan["prediction"]["devices"] = dict.fromkeys(names, used)
    plan |= {"placement": {f"m.{i}/mm": names[-1 - i % 9] for i in range(200_000)}, "weights": {}, "transfers": []}
    plan["io_device"] = "host"
    loaded = Plan.from_json(json.dumps(plan))
    assert len(loaded.placement) == 200_000


# ---------------------------------------------------------------- writing


def test_a_link_in_the_place_of_the_file_is_replaced_not_followed(tmp_path):
    plan, victim, link = Plan.load(TOLD[0]), tmp_path / "victim", tmp_path / "plan.json"
    victim.write_text("precious")
    link.symlink_to(victim)
    plan.save(link)
    assert victim.read_text() == "precious"
    assert not link.is_symlink()
    assert Plan.load(link) == plan


def test_no_name_of_a_temporary_file_can_be_foreseen(tmp_path, monkeypatch):
    plan, victim = Plan.load(TOLD[0]), tmp_path / "victim"
    victim.write_text("precious")
    for name in ("plan.json.tmp", ".plan.json.tmp", ".autosplit-.tmp"):
        (tmp_path / name).symlink_to(victim)
    plan.save(tmp_path / "plan.json")
    assert victim.read_text() == "precious"
    monkeypatch.setattr("secrets.token_hex", lambda n: "known")  # as if it had been foreseen
    (tmp_path / ".autosplit-known.tmp").symlink_to(victim)
    with pytest.raises(FileExistsError):
        plan.save(tmp_path / "other.json")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "other.json").exists()


def test_what_cannot_be_written_leaves_what_was(tmp_path, monkeypatch):
    plan, path = Plan.load(TOLD[0]), tmp_path / "plan.json"
    path.write_text("before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plan.save(path)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_the_mode_of_a_file_is_the_users(tmp_path):
    before = os.umask(0o027)
    try:
        Plan.load(TOLD[0]).save(tmp_path / "plan.json")
    finally:
        os.umask(before)
    assert (tmp_path / "plan.json").stat().st_mode & 0o777 == 0o640


def test_a_loop_of_links_and_a_name_that_is_none(tmp_path):
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    for path in (loop, tmp_path, "a\0b", "x" * 5000):
        with pytest.raises(PlanError, match="plan file"):
            Plan.load(path)
        with pytest.raises(DeviceError, match="cluster file"):
            read_cluster(path)
