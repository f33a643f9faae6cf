"""HTML: a plan as one page that needs no network and trusts nothing in the plan.

Names in a plan are data from anywhere. They reach the page as text that the template escapes, and as JSON in a script
element that is not run; charts draw them on a canvas, never as HTML. The content security policy lets only the two
scripts of ours run, told by their hashes, and no request go out.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from autosplit.placement import Plan
from autosplit.report.html.data import MOST_ROWS, numbers, words

__all__ = ["page", "script_json"]

_SCRIPTS = ("base.js", "memory.js", "schedule.js", "graph.js", "table.js", "start.js")


def page(plan: Plan) -> str:
    """The plan as one HTML document of about 1.2 MB, most of it the charts' library (Apache ECharts). O(nodes)."""
    library, ours, style = _asset("vendor/echarts.min.js"), _ours(), _asset("page.css")
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(library)} {_hash(ours)}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            policy=policy,
            style=Markup(style),
            library=Markup(library),
            script=Markup(ours),
            data=Markup(script_json(numbers(plan))),
            most_rows=MOST_ROWS,
            glyphs="●■▲◆▼★",
            **words(plan),
        )
    )


def script_json(value: Any) -> str:
    r"""``value`` as JSON that cannot end the script element it stands in, nor a line of JavaScript.

    >>> script_json({"a": "</script>"})
    '{"a":"\\u003c/script\\u003e"}'
    """
    text = msgspec.json.encode(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _ours() -> str:
    """Our scripts, each in a scope of its own file's making, run after the library."""
    return "\n".join(_asset(name) for name in _SCRIPTS)


@cache
def _hash(content: str) -> str:
    """As a content security policy names what may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, loader=FunctionLoader(_asset), trim_blocks=True)
