"""Small models that are too large for what the tests give them."""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 64


class Block(nn.Module):
    """Two layers, four times as wide between, added to what comes in."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, scale=1.0):
        return x + self.down(F.gelu(self.up(x))) * scale


class Net(nn.Module):
    """``depth`` blocks, called with a keyword."""

    def __init__(self, depth=2):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, scale=0.5)
        return x


def net(depth=2):
    """A Net of form only."""
    with torch.device("meta"):
        return Net(depth)


def large():
    """A Net of six blocks."""
    return net(6)


def samples(batch):
    """Inputs of form only."""
    return (torch.empty(batch, 32, WIDTH, device="meta"),)
