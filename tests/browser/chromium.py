"""Chromium without a screen: what a page asks for, says and shows. By its own command line, nothing else."""

import json
import os
import re
import shutil
import struct
import subprocess
import zlib

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
    """Width, height and rows of (r, g, b) bytes of a PNG of 8 bits a channel."""
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
    return width, height, _unfiltered(zlib.decompress(packed), width * step, height, step)


def _unfiltered(raw, stride, height, step):
    rows, above = [], bytearray(stride)
    for y in range(height):
        kind, line = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 : (y + 1) * (stride + 1)])
        for x in range(stride) if kind else ():
            left, up = (line[x - step] if x >= step else 0), above[x]
            corner = above[x - step] if x >= step else 0
            line[x] = (line[x] + _guess(kind, left, up, corner)) & 255
        rows.append([bytes(line[x : x + 3]) for x in range(0, stride, step)])
        above = line
    return rows


def _guess(kind, left, up, corner):
    if kind < 4:
        return (0, left, up, (left + up) >> 1)[kind]
    distances = [abs(left + up - corner - near) for near in (left, up, corner)]
    return (left, up, corner)[distances.index(min(distances))]
