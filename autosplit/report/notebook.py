"""Notebook: a plan as a small piece of HTML, without script, for ``_repr_html_``."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, StrictUndefined, Template

from autosplit.placement import Plan

_FRAGMENT = """\
<div style="font-family:system-ui,sans-serif;font-size:13px;line-height:1.45">
<div><b>{{ strategy|upper }}</b> {{ mode }}: {{ reason }}</div>
<table style="border-collapse:collapse;margin:6px 0">
<thead><tr>
{% for name in ("device", "memory", "reserved", "of", "busy", "runs") %}
<th scope="col" style="text-align:left;padding:2px 12px 2px 0">{{ name }}</th>
{% endfor %}
</tr></thead><tbody>
{% for device in devices %}
<tr>
<th scope="row" style="text-align:left;padding:2px 12px 2px 0">{{ device.name }}</th>
<td style="padding:2px 12px 2px 0"><meter min="0" max="100" value="{{ device.percent }}">{{ device.share }}</meter></td>
<td style="text-align:right;padding:2px 12px 2px 0">{{ device.reserved }}</td>
<td style="text-align:right;padding:2px 12px 2px 0">{{ device.capacity }}</td>
<td style="text-align:right;padding:2px 12px 2px 0">{{ device.busy }}</td>
<td style="text-align:left;padding:2px 12px 2px 0">{{ device.runs }}</td>
</tr>
{% endfor %}
</tbody></table>
<div>
{% for title, figure, meaning in cards %}
{{ title }} <b>{{ figure }}</b> ({{ meaning }}){{ "; " if not loop.last }}
{% endfor %}
</div>
{% if assumptions %}
<details><summary>assumes</summary><ul>{% for line in assumptions %}<li>{{ line }}</li>{% endfor %}</ul></details>
{% endif %}
</div>
"""


def fragment(plan: Plan) -> str:
    """The plan as an HTML element: strategy, devices, figures and assumptions, names escaped."""
    from autosplit.report.html.data import words

    return _template().render(words(plan))


@cache
def _template() -> Template:
    return Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(_FRAGMENT)
