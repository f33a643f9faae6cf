"""How a plan shows itself: as text, and as HTML in a notebook.

A plan is below the report and cannot import it. So the report hands its forms to this registry when it is imported, and
a plan asks here. Whatever makes or loads a plan for people (``autosplit.Plan``, ``autosplit.plan``, the command line)
imports the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from autosplit.placement.plan import Plan

Form = Literal["text", "html"]

_MAKERS: dict[Form, Callable[[Plan], str]] = {}


def register(form: Form, make: Callable[[Plan], str]) -> None:
    """Have ``make`` say what a plan is in this form; the last one registered does."""
    _MAKERS[form] = make


def shown(plan: Plan, form: Form) -> str | None:
    """The plan in this form; None where nobody registered it."""
    make = _MAKERS.get(form)
    return None if make is None else make(plan)
