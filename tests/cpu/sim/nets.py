"""Small models, each in two halves, and three training steps of them, whole on the CPU or split over two devices."""

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels_in, channels_out, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if stride != 1 else nn.Identity()

    def forward(self, x):
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)


class Attention(nn.Module):
    def __init__(self, width, heads, dropout=0.0):
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.dropout(self.out(attended.transpose(1, 2).reshape(batch, time, width)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Recurrent(nn.Module):
    def __init__(self, kind, bias=True):
        super().__init__()
        self.cells = kind(16, 32, 2, batch_first=True, bias=bias)

    def forward(self, x):
        return self.cells(x)[0]


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x):
        h = self.linear(x).relu_().clone()
        h[:, 0] = h[:, 1] * 2
        h[:, 2:4].mul_(3)
        self.seen.add_(h.detach().mean(0))
        v = h.view(-1, 4, 4).transpose(1, 2).contiguous()
        v.add_(1)
        h.masked_fill_(h > 2, 0.5)
        h[h < 0.1] = 0.0
        columns = torch.tensor([0, 3, 5, 9, 11, 13, 17, 20, 25, 30])
        return torch.cat([h, v.flatten(1)], 1).clamp_(min=-1)[:, columns]


def resnet():
    head = nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.ReLU(True), nn.MaxPool2d(3, 2, 1))
    head.extend([Residual(16, 16), Residual(16, 32, 2)])
    return head, nn.Sequential(Residual(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def transformer(dropout=0.0):
    head = nn.Sequential(nn.Embedding(100, 64), Attention(64, 4, dropout), Attention(64, 4, dropout))
    return head, nn.Sequential(Attention(64, 4, dropout), nn.LayerNorm(64), nn.Linear(64, 100))


def tied():
    embedding, readout = nn.Embedding(100, 64), nn.Linear(64, 100, bias=False)
    readout.weight = embedding.weight
    return nn.Sequential(embedding, Attention(64, 4), readout), nn.Identity()


def in_place():
    return InPlace(), nn.Identity()


class Split(nn.Module):
    """Two halves in a row; ``devices`` None leaves both on the CPU."""

    def __init__(self, head, tail, devices=None):
        super().__init__()
        self.devices = devices
        self.head = head.to(devices[0]) if devices else head
        self.tail = tail.to(devices[1]) if devices else tail

    def forward(self, x):
        if self.devices is None:
            return self.tail(self.head(x))
        return self.tail(self.head(x.to(self.devices[0])).to(self.devices[1]))


def batch_for(build):
    generator = torch.Generator().manual_seed(9)
    if build is resnet:
        return torch.randn(4, 3, 32, 32, generator=generator), torch.randint(0, 10, (4,), generator=generator)
    if build is in_place:
        return torch.randn(4, 16, generator=generator), torch.randint(0, 10, (4,), generator=generator)
    return torch.randint(0, 100, (2, 16), generator=generator), torch.randint(0, 100, (32,), generator=generator)


def train(halves, optimizer, batch, devices=None, steps=3):
    """Losses, and the state dict on the CPU, after ``steps`` training steps from seed 0."""
    torch.manual_seed(0)
    model = Split(*halves(), devices)
    steering = optimizer(model.parameters())
    x, target = batch
    losses = []
    torch.manual_seed(1)
    for _ in range(steps):
        steering.zero_grad()
        out = model(x)
        loss = F.cross_entropy(out.flatten(0, -2), target.to(out.device))
        loss.backward()
        steering.step()
        losses.append(loss.item())
    return losses, {name: value.detach().cpu() for name, value in model.state_dict().items()}
