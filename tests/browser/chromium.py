"""Chromium without a screen: what a page asks for, says and shows. By its own command line, nothing else."""

import json
import os
import re
import shutil
import struct
import subprocess
import zlib

import numpy as np

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OWN = "not an origin"  # as the log calls what the browser itself asks for: updates, dictionaries, time


def browse(path, work, *flags, wait_ms=4000):
    """Open a file. Returns what was written to stdout, console messages, and addresses that the page asked for."""
    log = work / "net.json"
    done = subprocess.run(
        [
            BINARY,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            "--enable-logging=stderr",
            f"--user-data-dir={work / 'profile'}",
            f"--log-net-log={log}",
            *([f"--virtual-time-budget={wait_ms}"] if wait_ms else []),
            *flags,
            path.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(work)},
    )
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode(), console, requests(log.read_text())


def requests(log):
    """Addresses that a page asked for, from a log of the network."""
    try:
        events = json.loads(log)["events"]
    except json.JSONDecodeError:  # the browser ended before it closed the list
        events = json.loads(log.rstrip().rstrip(",") + "]}")["events"]
    asked = [event["params"] for event in events if "url" in event.get("params", {})]
    return [found["url"] for found in asked if found.get("initiator", _OWN) != _OWN]


def attributes(dom, name):
    """Values of an attribute in a page's source, in order."""
    return re.findall(rf'\b{name}="([^"]*)"', dom)


def pixels(path):
    """Rows of pixels of a PNG of 8 bits a channel: an array of height x width x (red, green, blue)."""
    data = path.read_bytes()
    at, packed = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        chunk = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", chunk[:10])
        elif kind == b"IDAT":
            packed += chunk
        at += 12 + size
    step = {2: 3, 6: 4}[colour]
    raw = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * step)
    rows = np.zeros((height + 1, width * step), np.uint8)
    for y, (kind, *_) in enumerate(raw[:, :1].tolist()):
        rows[y + 1] = _unfiltered(kind, raw[y, 1:], rows[y], step)
    return rows[1:].reshape(height, width, step)[:, :, :3]


def _unfiltered(kind, line, above, step):
    """A row of bytes, as the PNG specification has its five filters."""
    if kind < 2:
        return np.add.accumulate(line.reshape(-1, step), 0, np.uint8).reshape(-1) if kind else line
    if kind == 2:
        return line + above
    line, above = line.tolist(), above.tolist()
    for x, up in enumerate(above):
        left, corner = (line[x - step], above[x - step]) if x >= step else (0, 0)
        line[x] = (line[x] + ((left + up) >> 1 if kind == 3 else _nearest(left, up, corner))) & 255
    return line


def _nearest(left, up, corner):
    a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    return left if a <= b and a <= c else up if b <= c else corner
