"""The usual two-GPU tutorial, without rewriting the model.

The tutorial's four-layer network has fc1 and fc4 on the first device and fc2 and fc3 on the second, with ``.to()``
written into forward by hand. Here the same network is written without devices, and partitioned by that placement:
the emitted code has the same two transfers, and the same result.

Run: python examples/tutorial_two_devices.py
"""

from __future__ import annotations

import contextlib

import torch
from torch import nn

import autosplit


class ByHand(nn.Module):
    """As the tutorial writes it."""

    def __init__(self, first: torch.device, second: torch.device) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.fc1 = nn.Linear(64, 128).to(first)
        self.fc2 = nn.Linear(128, 128).to(second)
        self.fc3 = nn.Linear(128, 128).to(second)
        self.fc4 = nn.Linear(128, 10).to(first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.fc1(x))
        x = x.to(self.second)
        x = torch.relu(self.fc2(x))
        x = torch.relu(self.fc3(x))
        x = x.to(self.first)
        return self.fc4(x)


class Plain(nn.Module):
    """As one writes it for one device."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, 128)
        self.fc4 = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.fc1(x))
        x = torch.relu(self.fc2(x))
        x = torch.relu(self.fc3(x))
        return self.fc4(x)


def main() -> None:
    with contextlib.ExitStack() as stack:
        if torch.cuda.device_count() >= 2:
            first, second = torch.device("cuda:0"), torch.device("cuda:1")
        else:
            first, second = stack.enter_context(autosplit.sim.cluster("2x1GiB")).devices
        compare(first, second)


def compare(first: torch.device, second: torch.device) -> None:
    torch.manual_seed(0)
    by_hand = ByHand(first, second)
    plain = Plain()
    plain.load_state_dict({name: value.cpu() for name, value in by_hand.state_dict().items()})
    x = torch.randn(32, 64).to(first)

    placement = {"fc1": str(first), "fc2": str(second), "fc3": str(second), "fc4": str(first)}
    split = autosplit.partition(plain, [first, second], args=(x,), placement=placement)
    found, expected = split(x), by_hand(x)

    print(split.graph_module.code)
    for transfer in split.plan.transfers:
        print(f"transfer: {transfer.tensor}  {transfer.src} -> {transfer.dst}  {transfer.size_bytes} bytes")
    found.sum().backward()
    expected.sum().backward()
    gradients = zip(split.parameters(), by_hand.parameters(), strict=True)
    print(f"transfers: {len(split.plan.transfers)}")
    print(f"outputs equal: {torch.equal(found, expected)}")
    print(f"gradients equal: {all(torch.equal(ours.grad, theirs.grad) for ours, theirs in gradients)}")
    print(f"still the user's class: {isinstance(split, Plain)}")


if __name__ == "__main__":
    main()
