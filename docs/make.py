"""Make the table and the picture of a plan in these docs: a Llama-70B shape on eight A100-80GB, in training.

    python docs/make.py              # plan, then write the table, the picture and the part of the README
    python docs/make.py plan.json    # the same of a plan that is there

Needs transformers for the plan, and Chromium for the picture.
"""

import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np

from autosplit import Plan, __version__
from autosplit.report import text
from autosplit.report.html import page

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests" / "browser"))

from chromium import BINARY, browse, pixels  # noqa: E402  # of the tests, that look at pictures too

FOLDER = HERE / "llama-70b"
COMMAND = (
    "autosplit plan hf:docs/llama-70b --input input_ids=i64:16x512 --input labels=i64:16x512 --devices 8xA100-80GB "
    "--for train --optimizer adafactor --strategy pipeline --microbatches 8 --schedule 1f1b"
)
MOST_BYTES = 200_000
BEGIN, END = "<!-- docs/make.py: begin -->\n", "<!-- docs/make.py: end -->\n"


def main() -> None:
    """Plan, or read a plan; then write all that is shown of it."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan.load(sys.argv[1]) if len(sys.argv) > 1 else planned(Path(folder) / "plan.json")
        table = text(plan)
        (FOLDER / "plan.txt").write_text(f"$ {COMMAND}\n{table}", encoding="utf-8")
        picture(plan, Path(folder), FOLDER / "plan.png")
    readme = HERE.parent / "README.md"
    readme.write_text(with_table(readme.read_text(encoding="utf-8"), table), encoding="utf-8")


def planned(path: Path) -> Plan:
    """The plan that the command makes, timed."""
    started = time.perf_counter()
    words = COMMAND.removeprefix("autosplit ").split()
    subprocess.run([sys.executable, "-m", "autosplit", *words, "--out", str(path)], check=True, cwd=HERE.parent)
    print(f"autosplit {__version__}: planned in {time.perf_counter() - started:.1f} s, torch imported")
    return Plan.load(path)


def picture(plan: Plan, folder: Path, target: Path) -> None:
    """The report as Chromium shows it, in at most 256 colours."""
    if BINARY is None:
        sys.exit("no chromium on this machine: apt-get install chromium")
    source, shot = folder / "plan.html", folder / "plan.png"
    source.write_text(page(plan), encoding="utf-8")
    browse(source, folder, f"--screenshot={shot}", "--window-size=1280,2930")
    target.write_bytes(paletted(pixels(shot)))
    made = target.stat().st_size
    if made > MOST_BYTES:
        sys.exit(f"{target}: {made} bytes, the limit is {MOST_BYTES}: make the window smaller")
    print(f"{target.relative_to(HERE.parent)}: {made} bytes")


def paletted(rows: np.ndarray) -> bytes:
    """A PNG of height x width x (red, green, blue): in its 256 commonest colours, told apart by 5 bits each."""
    height, width, _ = rows.shape
    coarse = (rows >> 3).astype(np.int32)
    keys, index, counts = np.unique(coarse @ [1024, 32, 1], return_inverse=True, return_counts=True)
    common = keys[np.argsort(-counts)[:256]]
    colours, palette = (np.stack([k >> 10, k >> 5 & 31, k & 31], -1) for k in (keys, common))
    nearest = ((colours[:, None] - palette) ** 2).sum(-1).argmin(1).astype(np.uint8)
    exact = np.zeros((len(keys), 3), np.uint8)
    exact[index.reshape(-1)] = rows.reshape(-1, 3)  # any pixel of the colour: white stays white
    lines = np.insert(nearest[index.reshape(height, width)], 0, 0, axis=1)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", exact[np.searchsorted(keys, common)].tobytes()),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks."""
    body = f"<details><summary>The table</summary>\n\n```console\n$ {COMMAND}\n{table}```\n\n</details>\n"
    found = re.subn(f"{BEGIN}.*?{END}", lambda _: BEGIN + body + END, readme, flags=re.DOTALL)
    if found[1] != 1:
        sys.exit(f"README.md has not one part between {BEGIN.strip()} and {END.strip()}")
    return found[0]


if __name__ == "__main__":
    main()
