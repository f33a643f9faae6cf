"""What a rank holds: weights, names, checkpoints that other plans read, and the errors of a pipeline's use."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import autosplit
from ranks.harness import run_ranks
from ranks.models import BATCH, batch, build, optimizer_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # a checkpoint of one process

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # by name, not by group: ranks have parts of both
FIRST, THEN = range(3), range(3, 6)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    losses = []
    for number in numbers:
        optimizer.zero_grad()
        loss = model(**batch("gpt2", number))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=FLAT),
    }


def load(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, **how: Any) -> None:
    model = getattr(model, "module", model)  # torch looks for all of a model's weights in DistributedDataParallel
    state = state_of(model, optimizer)
    dcp.load(state, checkpoint_id=path, **how)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=FLAT)


def other_weights() -> nn.Module:
    model = build("gpt2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    return model


def pipelined(model: nn.Module, **how: Any) -> nn.Module:
    warnings.simplefilter("ignore", UserWarning)
    asked = {"strategy": "pipeline", "microbatches": 4, "schedule": "1f1b"} | how
    return autosplit.partition(model, ["cpu"], kwargs=batch("gpt2"), profile=False, **asked)


def refused(call: Any) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the words are looked at by the test
        call()
    return f"{type(caught.value).__name__}: {caught.value}"


def on_rank(rank: int, folder: Path) -> dict[str, Any]:
    model = other_weights()
    parameters = dict(model.named_parameters())
    whole = {name: value.clone() for name, value in model.state_dict().items()}
    split = pipelined(model)
    said: dict[str, Any] = {"is model": split is model, "names": list(split.state_dict()), "replica": split.replica}
    here = dict(split.named_parameters())
    said["same objects"] = all(parameters[name] is parameter for name, parameter in here.items())
    said["parameters"] = list(here)
    optimizer = optimizer_of("gpt2", split.parameters())
    load(split, optimizer, folder / "one")
    said["losses"] = steps(split, optimizer, THEN)
    dcp.save(state_of(split, optimizer), checkpoint_id=folder / "two")
    said["saved"] = {name: value.clone() for name, value in split.state_dict().items()}
    save_model(split, str(folder / f"part{rank}.safetensors"))
    with torch.no_grad():
        said["logits"] = split(**batch("gpt2", 9))["logits"]
    said["misuse"] = misuse(split, rank)
    said["whole"] = str(split.load_state_dict(whole))
    said["partial"] = str(split.load_state_dict(split.state_dict()))
    said["loaded"] = all(torch.equal(value, whole[name]) for name, value in split.state_dict().items())
    return said


def misuse(split: nn.Module, rank: int) -> dict[str, str]:
    found = {}
    found["other output"] = refused(lambda: split(**batch("gpt2"))["logits"].sum().backward())
    found["other batch"] = refused(lambda: split(**batch("gpt2", step=rank, samples=4)))
    loss = split(**batch("gpt2"))["loss"]
    loss.backward(retain_graph=True)
    found["twice"] = refused(loss.backward)
    found["in eval"] = str(torch.isfinite(split.eval()(**batch("gpt2"))["loss"]).item())
    split.train()
    return found


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path
    model = build("gpt2")
    names = list(model.state_dict())
    optimizer = optimizer_of("gpt2", model.parameters())
    steps(model, optimizer, FIRST)
    dcp.save(state_of(model, optimizer), checkpoint_id=folder / "one", no_dist=True)
    losses = steps(model, optimizer, THEN)
    with torch.no_grad():
        logits = model(**batch("gpt2", 9))["logits"]
    said = run_ranks(on_rank, 2, folder / "ranks", folder)
    return {"model": model, "names": names, "losses": losses, "logits": logits, "said": said, "folder": folder}


def check_each_rank_holds_its_part_under_the_models_names(trained: dict[str, Any]) -> None:
    parts = [said["names"] for said in trained["said"]]
    assert set(parts[0]) | set(parts[1]) == set(trained["names"])
    assert set(parts[0]) & set(parts[1]) == {"transformer.wte.weight", "lm_head.weight"}  # tied
    for said in trained["said"]:
        assert said["is model"]
        assert said["same objects"]
        assert said["names"] == [name for name in trained["names"] if name in said["names"]]
        assert set(said["parameters"]) == set(said["names"]) - {"lm_head.weight"}
        assert said["replica"] == 0


def check_one_process_to_two_ranks(trained: dict[str, Any]) -> None:
    for said in trained["said"]:
        assert said["losses"] == pytest.approx(trained["losses"], rel=5e-6)
        torch.testing.assert_close(said["logits"], trained["logits"], rtol=1e-4, atol=1e-5)


def check_two_ranks_to_one_process(trained: dict[str, Any]) -> None:
    model = other_weights()
    optimizer = optimizer_of("gpt2", model.parameters())
    load(model, optimizer, trained["folder"] / "two", no_dist=True)
    for said in trained["said"]:
        assert all(torch.equal(model.state_dict()[name], value) for name, value in said["saved"].items())
    want = steps(trained["model"], torch.optim.SGD(trained["model"].parameters(), 0.0), range(6, 7))
    assert steps(model, optimizer, range(6, 7)) == pytest.approx(want, rel=5e-6)


def check_safetensors_of_a_part(trained: dict[str, Any]) -> None:
    found: dict[str, torch.Tensor] = {}
    for rank in range(2):
        found |= load_file(trained["folder"] / f"part{rank}.safetensors")
    assert set(found) | {"transformer.wte.weight", "lm_head.weight"} == set(trained["names"])


def check_a_state_dict_may_be_whole_or_a_part(trained: dict[str, Any]) -> None:
    for said in trained["said"]:
        assert "All keys matched" in said["whole"]
        assert "All keys matched" in said["partial"]
        assert said["loaded"]


def check_misuse_says_what_to_do(trained: dict[str, Any]) -> None:
    for said in trained["said"]:
        words = said["misuse"]
        assert "schedule='gpipe'" in words["other output"]
        assert "DistributedSampler(data, num_replicas=1, rank=split.replica)" in words["other batch"]
        assert "twice" in words["twice"]
        assert words["in eval"] == "True"


def test_two_ranks(trained: dict[str, Any]) -> None:
    """One test, as the ranks are started once for all of it."""
    check_each_rank_holds_its_part_under_the_models_names(trained)
    check_one_process_to_two_ranks(trained)
    check_two_ranks_to_one_process(trained)
    check_safetensors_of_a_part(trained)
    check_a_state_dict_may_be_whole_or_a_part(trained)
    check_misuse_says_what_to_do(trained)


def in_four(rank: int, folder: Path, two: bytes) -> dict[str, Any]:
    found = {}
    for name, how in (("deep", {}), ("hybrid", {"plan": autosplit.Plan.from_json(two)})):
        split = pipelined(other_weights(), **how)
        optimizer = optimizer_of("gpt2", split.parameters())
        load(split, optimizer, folder / "one")
        found[name] = steps(split, optimizer, THEN)
    return found


@pytest.mark.long
def test_one_process_to_four_ranks(trained: dict[str, Any], tmp_path: Path) -> None:
    from ranks.training import with_schedule

    cluster = autosplit.Cluster(
        devices=tuple(autosplit.Device(name=f"rank{r}/cpu", kind="cpu", memory_bytes=2**33) for r in range(2))
    )
    plan = autosplit.plan(
        build("gpt2"), cluster, kwargs=batch("gpt2"), strategy="pipeline", microbatches=4, profile=False
    )
    assert BATCH % 4 == 0
    for said in run_ranks(in_four, 4, tmp_path / "four", trained["folder"], with_schedule(plan, "gpipe", 2).to_json()):
        assert said["deep"] == pytest.approx(trained["losses"], rel=5e-6)
        assert said["hybrid"] == pytest.approx(trained["losses"], rel=5e-6)
