"""Stable names of nodes: another capture of the same model gives the same node the same name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import fx

from autosplit.program.facts import Input

_CONTROL_WORDS = ("autocast", "_set_grad_enabled", "inference_mode", "_saved_tensors_hooks", "_functorch")
_DICT = re.compile(r"\.__dict__\[['\"]_modules['\"]\]")
_FRAME = re.compile(r'File "([^"]*)", line (\d+), in (\w+)')
_STEP = re.compile(r"\._modules\[(?P<q>['\"])(?P<name>.*?)(?P=q)\]|\[(?P<q2>['\"]?)(?P<item>.*?)(?P=q2)\]")


def stable_names(graph: fx.Graph, inputs: Mapping[fx.Node, Input], prefix: str = "") -> dict[fx.Node, str]:
    """Name of each node: "weight/NAME" and "input/NAME" for placeholders, else "MODULE.PATH/OPERATOR#ORDINAL".

    ``prefix`` is the path of the captured module in the whole model.

    The model's own names stay data: they are never used as identifiers in emitted code.
    """
    counts: dict[str, int] = {}
    names: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            base = f"{'weight' if inputs[node].is_weight else 'input'}/{inputs[node].name}"
        else:
            base = f"{'.'.join(filter(None, (prefix, module_path(node))))}/{operator_name(node)}"
        counts[base] = counts.get(base, 0) + 1
        names[node] = base if counts[base] == 1 else f"{base}#{counts[base]}"
    return names


def module_path(node: fx.Node) -> str:
    """Dotted path of the innermost module that the node comes from; "" for the root."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str(next(reversed(stack.values()))[0]).removeprefix("L['self']")
    path = _DICT.sub("._modules", path)  # how Dynamo writes it for a module whose attributes forward sets
    return _STEP.sub(lambda m: "." + (m["name"] or m["item"] or ""), path).removeprefix(".")


def operator_name(node: fx.Node) -> str:
    """A short name of the operator, for people and for stable names."""
    return str(getattr(node.target, "__name__", node.target))


def source_line(node: fx.Node) -> str:
    """Where the node comes from in the model's own source: " at FILE:LINE in FUNCTION"; "" when that is not known."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    return " at {}:{} in {}".format(*frames[-1]) if frames else ""


def is_checkpoint(node: fx.Node) -> bool:
    """A region that keeps its inputs alone, and computes itself again in the backward (activation checkpointing)."""
    return node.target is torch.ops.higher_order.tag_activation_checkpoint


def is_control(node: fx.Node) -> bool:
    """Autocast, grad-mode and similar region marks: they keep their place and are no compute."""
    return node.op == "call_function" and any(word in operator_name(node) for word in _CONTROL_WORDS)


def is_move(node: fx.Node) -> bool:
    """The user's own ``.to()``, ``.cpu()`` or ``.cuda()``."""
    return node.op == "call_method" and node.target in ("to", "cpu", "cuda")
