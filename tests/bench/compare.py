"""Cases of docs/compare.md: what Accelerate's device maps, torch.distributed.pipelining and autosplit do with them.

    python tests/bench/compare.py

Models are shapes on the meta device. Needs transformers, and accelerate for its part (pip install accelerate).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import SplitPoint, pipeline
from transformers import LlamaConfig, LlamaForCausalLM, logging

import autosplit

GIB = 2**30
SMALL = {  # Llama-3.2-1B
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
SEVEN = {  # Llama-2-7B
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
}


def main() -> None:
    """Print what each does."""
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, autosplit {autosplit.__version__}")
    if importlib.util.find_spec("accelerate") is None:
        print("accelerate is not installed: unmeasured")
    else:
        print(f"accelerate {importlib.metadata.version('accelerate')}")
        balanced("Llama-3.2-1B, 8 x 24 GiB", llama(SMALL, torch.float32), "24GiB")
        balanced("Llama-3.2-1B, 8 x 2 GiB", llama(SMALL, torch.float32), "2GiB")
        too_small(llama(SEVEN, torch.float16))
    pipelining()


def llama(sizes: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    """The shape on the meta device."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**sizes)).to(dtype).eval()


def device_map(model: nn.Module, memory: dict[int, str], how: str = "balanced") -> dict[str, Any]:
    """What ``device_map="balanced"`` or "sequential" of Accelerate decides."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    classes = list(model._no_split_modules)
    model.tie_weights()
    budget = get_balanced_memory(model, memory, no_split_module_classes=classes) if how == "balanced" else memory
    return infer_auto_device_map(model, budget, no_split_module_classes=classes)


def weight_bytes(model: nn.Module, found: dict[str, Any]) -> Counter[str]:
    """Bytes of weights by device of a device map."""
    held: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        path = next(
            path for path in sorted(found, key=len, reverse=True) if f"{name}.".startswith(f"{path}." * bool(path))
        )
        held[str(found[path])] += weight.nbytes
    return held


def balanced(title: str, model: nn.Module, size: str) -> None:
    """Weights by device: Accelerate's "balanced" and "sequential", and a split for least memory."""
    memory = dict.fromkeys(range(8), size)
    theirs = {how: dict(weight_bytes(model, device_map(model, memory, how))) for how in ("balanced", "sequential")}
    tokens = {"input_ids": torch.ones(1, 128, dtype=torch.int64), "use_cache": False}
    plan = autosplit.plan(model, f"8x{size}", kwargs=tokens, mode="infer", strategy="split", objective="memory")
    ours = {name: found.weight_bytes for name, found in plan.prediction.devices.items()}
    for who, found in (*theirs.items(), ("autosplit", ours)):
        shown = ", ".join(f"{name}: {size / GIB:.2f}" for name, size in sorted(found.items()))
        print(f"{title}, GiB of weights, {who}: {shown}")


def too_small(model: nn.Module) -> None:
    """A device of 1 GiB for 12.6 GiB of weights."""
    found = Counter(map(str, device_map(model, {0: "1GiB"}).values()))
    print(f"Llama-2-7B, 1 GiB, accelerate: entries of the device map by device: {dict(found)}, no error")
    try:
        autosplit.plan(model, "1x1GiB", kwargs={"input_ids": torch.ones(1, 128, dtype=torch.int64)}, mode="infer")
    except autosplit.CapacityError as error:
        print(f"Llama-2-7B, 1 GiB, autosplit: CapacityError, bytes short: {error.short_bytes}, proved: {error.proved}")


# ---------------------------------------------------------------- torch.distributed.pipelining


class Tied(nn.Module):
    """Its head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(8), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens) * self.scale
        heads = hidden.view(hidden.size(0), hidden.size(1), 2, 4).relu()  # as attention does
        return self.head(self.middle(heads.flatten(2)))


class Branching(Tied):
    """A branch on data."""

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        return self.head(self.middle(hidden) if hidden.sum() > 0 else hidden)


def pipelining() -> None:
    """A tied weight, another length, a buffer that is not saved, a branch on data."""
    for what, try_torch, try_ours in (
        ("a tied weight is one tensor after the split", one_tensor_torch, one_tensor_ours),
        ("another length than the example's runs", length_torch, length_ours),
        ("a buffer that is not saved stays so", buffer_torch, buffer_ours),
        ("a branch on data can be split", branch_torch, branch_ours),
    ):
        print(f"{what}: torch.distributed.pipelining {outcome(try_torch)}, autosplit {outcome(try_ours)}")


def outcome(attempt: Callable[[], bool]) -> str:
    """ "yes", "no", or what was raised."""
    try:
        return "yes" if attempt() else "no"
    except Exception as error:  # whatever it is, it is what is asked
        return f"no ({type(error).__name__})"


def tokens(length: int = 5) -> Tensor:
    """A batch of two."""
    return torch.arange(2 * length).reshape(2, length) % 16


def pipe(model: nn.Module) -> Any:
    """Two stages by torch."""
    return pipeline(model, mb_args=(tokens(),), split_spec={"head": SplitPoint.BEGINNING})


def split(model: nn.Module, cluster: Any) -> nn.Module:
    """Two devices by autosplit, the middle on the second."""
    return autosplit.partition(
        model, cluster.devices, args=(tokens(),), strategy="split", placement={"middle": "sim:1"}
    )


def one_tensor_torch() -> bool:
    """Whether both stages have the same storage."""
    made = pipe(Tied())
    held = {
        weight.data_ptr()
        for stage in (0, 1)
        for weight in made.get_stage_module(stage).parameters()
        if weight.shape == (16, 8)
    }
    return len(held) == 1


def one_tensor_ours() -> bool:
    """The same."""
    with autosplit.sim.cluster("2x64MiB") as cluster:
        model = split(Tied(), cluster)
        return model.head.weight is model.embed.weight


def length_torch() -> bool:
    """Run the stages on seven tokens."""
    made = pipe(Tied())
    return made.get_stage_module(1)(made.get_stage_module(0)(tokens(7))).shape == (2, 7, 16)


def length_ours() -> bool:
    """Call the split model on seven tokens."""
    with autosplit.sim.cluster("2x64MiB") as cluster:
        return split(Tied(), cluster)(tokens(7)).shape == (2, 7, 16)


def buffer_torch() -> bool:
    """Whether the stages' state_dict leaves the buffer out."""
    made = pipe(Tied())
    return not any("scale" in name for stage in (0, 1) for name in made.get_stage_module(stage).state_dict())


def buffer_ours() -> bool:
    """The same of the split model."""
    with autosplit.sim.cluster("2x64MiB") as cluster:
        return "scale" not in split(Tied(), cluster).state_dict()


def branch_torch() -> bool:
    """Make the stages."""
    return pipe(Branching()) is not None


def branch_ours() -> bool:
    """Split, and compare with the unsplit model."""
    model = Branching()
    expected = model(tokens())
    with autosplit.sim.cluster("2x64MiB") as cluster:
        return torch.equal(split(model, cluster)(tokens().to("sim:0")).cpu(), expected)


if __name__ == "__main__":
    main()
