"""Options that several commands share."""

from __future__ import annotations

import click

debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else.")
allow_code_option = click.option("--allow-code", is_flag=True, help="Load a .pt2 file, which runs code that is in it.")
input_option = click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SPEC",
    help="An argument of forward: NAME=TYPE:SIZES, as in ids=i64:4x2048, x=f32:2x3x224x224 or ids=i64:1..8x2048 "
    "(planned at the largest); t=i64: is one number.  [default: what MODEL brings; of transformers a short sequence]",
)
