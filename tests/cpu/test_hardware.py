"""What `devices=` may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import autosplit
from autosplit import sim
from autosplit.hardware import resolve, torch_devices

DOC = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_documented_cluster_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(re.search(r"```toml\n(.*?)```", DOC.read_text(), re.DOTALL)[1])
    cluster = resolve(str(tmp_path / "cluster.toml"))
    assert cluster.names == ("gpu:0", "gpu:1")
    assert cluster.transfer_ns("gpu:0", "gpu:1", 12_000) == 16_000
    assert cluster.transfer_ns("gpu:1", "gpu:0", 25_000) == 11_000


def test_a_broken_cluster_file_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text("[[device]]\n")
    with pytest.raises(autosplit.DeviceError, match="unknown field `device`"):
        resolve(str(tmp_path / "cluster.toml"))
    with pytest.raises(autosplit.DeviceError, match="No such file"):
        resolve(str(tmp_path / "absent.toml"))


def test_every_form_of_devices() -> None:
    with sim.cluster("2x64MiB") as cluster:
        names = ("sim:0", "sim:1")
        for devices in ("sim", "sim:0,sim:1", list(names), [torch.device("sim:0"), "sim:1"], cluster, "auto"):
            assert resolve(devices).names == names
        assert resolve({"sim:1": "22MiB"}).devices[0].memory_bytes == 22 * 2**20
        assert resolve(resolve("sim")) == resolve("sim")
        assert resolve("sim").devices[0].memory_bytes == 64 * 2**20
        assert list(torch_devices(resolve("sim"))) == ["sim:0", "sim:1", "host"]
    for spec in ("2x0GiB", "x24GiB", "gpu", "2x24Gb"):
        with pytest.raises(autosplit.DeviceError):
            resolve(spec)
