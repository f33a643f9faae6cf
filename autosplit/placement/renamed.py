"""A plan with its devices called otherwise."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from autosplit.placement.plan import Plan


def renamed(plan: Plan, names: Mapping[str, str]) -> Plan:
    """``plan`` with each device that ``names`` has called so, in its cluster too; no two may become one.

    Raises:
        ValueError: two devices would have one name.
    """
    all_names = [names.get(name, name) for name in plan.cluster.names]
    if len(set(all_names)) < len(all_names):
        raise ValueError(f"two devices would have one name: {', '.join(all_names)}")

    def of(name: str) -> str:
        return names.get(name, name)

    prediction = plan.prediction
    made = msgspec.structs.replace(
        plan,
        cluster=msgspec.structs.replace(
            plan.cluster,
            devices=tuple(msgspec.structs.replace(d, name=of(d.name)) for d in plan.cluster.devices),
            links=tuple(msgspec.structs.replace(k, src=of(k.src), dst=of(k.dst)) for k in plan.cluster.links),
        ),
        io_device=of(plan.io_device),
        placement={node: of(device) for node, device in plan.placement.items()},
        weights={weight: of(device) for weight, device in plan.weights.items()},
        transfers=tuple(msgspec.structs.replace(t, src=of(t.src), dst=of(t.dst)) for t in plan.transfers),
        prediction=msgspec.structs.replace(
            prediction,
            devices={of(name): device for name, device in prediction.devices.items()},
            spans=tuple(msgspec.structs.replace(s, device=of(s.device), to=of(s.to)) for s in prediction.spans),
        ),
    )
    made.__dict__.update(plan.__dict__)  # whether its file was edited
    return made
