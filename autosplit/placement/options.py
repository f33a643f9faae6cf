"""The strategies that were weighed, in words: why this one, why not another. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autosplit.errors import PlanError
from autosplit.units import format_bytes, format_ns

if TYPE_CHECKING:
    from autosplit.placement.plan import Option, Plan

STRATEGIES = ("single", "replicate", "split", "pipeline", "hybrid")


_ASK = "strategy='auto' weighs them all"


def why(plan: Plan) -> str:
    """The reason of a plan, and a line for each option: time, samples/s, memory, idle share; the chosen one marked."""
    lines = [f"{plan.strategy}: {plan.reason}"]
    for option in plan.options:
        mark = "*" if option.strategy == plan.strategy else " "
        lines.append(f"{mark} {option.strategy:<9}  {figures(option)}")
    if not plan.options:
        lines.append(f"  no other strategy was weighed: {_ASK}")
    return "\n".join(lines)


def why_not(plan: Plan, strategy: str) -> str:
    """One paragraph on a strategy that was not chosen.

    Raises:
        PlanError: there is no such strategy.
    """
    if strategy not in STRATEGIES:
        raise PlanError(f"strategy {strategy!r}: expected one of {', '.join(map(repr, STRATEGIES))}")
    if strategy == plan.strategy:
        return f"{strategy} is what was chosen: {plan.reason}"
    weighed: dict[str, Option] = {option.strategy: option for option in plan.options}
    option, chosen = weighed.get(strategy), weighed.get(plan.strategy)
    if option is None:
        return f"{strategy} was not weighed against {plan.strategy}: {plan.reason}; {_ASK}"
    if option.step_ns is None or chosen is None or chosen.step_ns is None:
        return f"{strategy}: {figures(option)}"
    return f"{strategy}: {figures(option)}; {_loses(option, chosen)}"


def figures(option: Option) -> str:
    """An option in one line: its words, or figures and words."""
    if option.step_ns is None:
        return f"{option.words} ({_memory(option)[0]})" if _memory(option) else option.words
    parts = [f"{format_ns(option.step_ns)} a step"]
    if option.samples:
        parts.append(f"{option.samples * 10**9 / max(1, option.step_ns):,.0f} samples/s")
    parts += _memory(option)
    share = idle(option)
    if share is not None:
        parts.append(f"{share:.0%} idle")
    return f"{', '.join(parts)}: {option.words}"


def idle(option: Option) -> float | None:
    """The share of a step in which its devices compute nothing; None where that is not known."""
    if option.step_ns is None or option.busy_ns is None:
        return None
    return max(0.0, 1 - option.busy_ns / max(1, option.step_ns * option.devices))


def _memory(option: Option) -> list[str]:
    if option.needs_bytes is None or option.has_bytes is None:
        return []
    needs, has = format_bytes(option.needs_bytes), format_bytes(option.has_bytes)
    return [f"{needs} of {has}" if option.needs_bytes <= option.has_bytes else f"{needs} estimated, has {has}"]


def _loses(option: Option, chosen: Option) -> str:
    """By which figure, and by what factor."""
    mine, best = _compared_ns(option), _compared_ns(chosen)
    what = "a step" if option.by == "step" or not option.samples else "a sample"
    factor = mine / max(best, 1e-9)
    if factor < 1:
        return (
            f"it would take {1 / factor:.2f}x less for {what} than {chosen.strategy}, which is kept: the difference is "
            "within what an estimate can err"
        )
    return (
        f"it takes {factor:.2f}x what {chosen.strategy} takes for {what} "
        f"({format_ns(round(mine))} against {format_ns(round(best))})"
    )


def _compared_ns(option: Option) -> float:
    step_ns = option.step_ns or 0
    return step_ns if option.by == "step" or not option.samples else step_ns / option.samples
