"""Make the table and the picture of a plan in these docs: a Llama-70B shape on eight A100-80GB, in training.

    python docs/make.py              # plan, then write the table, the picture and the part of the README
    python docs/make.py plan.json    # the same of a plan that is there

Needs transformers for the plan, and Chromium for the picture.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from autosplit import Plan, __version__
from autosplit.report import text
from autosplit.report.html import page

HERE = Path(__file__).parent
FOLDER = HERE / "llama-70b"
COMMAND = (
    "autosplit plan hf:docs/llama-70b --input input_ids=i64:16x2048 --devices 8xA100-80GB --for train "
    "--optimizer adafactor"
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
    """The report as Chromium shows it."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no chromium on this machine: apt-get install chromium")
    source = folder / "plan.html"
    source.write_text(page(plan), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=4000"]
    size = ["--window-size=1280,1840", f"--user-data-dir={folder / 'profile'}", f"--screenshot={target}"]
    subprocess.run([browser, *flags, *size, source.as_uri()], check=True, capture_output=True)
    made = target.stat().st_size
    if made > MOST_BYTES:
        sys.exit(f"{target}: {made} bytes, the limit is {MOST_BYTES}: make the window smaller")
    print(f"{target}: {made} bytes")


def with_table(readme: str, table: str) -> str:
    """The README with the table between its marks."""
    body = f"```console\n$ {COMMAND}\n{table}```\n"
    found = re.subn(f"{BEGIN}.*?{END}", lambda _: BEGIN + body + END, readme, flags=re.DOTALL)
    if found[1] != 1:
        sys.exit(f"README.md has not one part between {BEGIN.strip()} and {END.strip()}")
    return found[0]


if __name__ == "__main__":
    main()
