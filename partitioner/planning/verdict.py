"""The plan in words: what a choice does, and in one sentence what it wins against doing without a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partitioner.planning.plan import Choice, Figures, Plan, Scene

ON_DEVICE, TO_FOG, TO_CLOUD = "all on the device", "raw input to the fog", "raw input to the cloud"
SPLIT = "split"
RULED_OUT = "is ruled out by what was fixed"
HOPED = "was not expected to be better: the plan hoped for more exits than could be certified"
DOING = {
    ON_DEVICE: "Running all on the device",
    TO_FOG: "Sending the raw input to the fog",
    TO_CLOUD: "Sending the raw input to the cloud",
}


def kind(scene: Scene, choice: Choice) -> str:
    """`ON_DEVICE`, `TO_FOG` or `TO_CLOUD` if one tier does everything, else `SPLIT`."""
    last = len(scene.points) - 1
    if choice.edge_end == last:
        return ON_DEVICE
    if choice.edge_end > 0 or "edge" in choice.exit_tiers:
        return SPLIT
    if choice.fog_end == last:
        return TO_FOG
    return SPLIT if choice.fog_end > 0 or "fog" in choice.exit_tiers else TO_CLOUD


def describe(scene: Scene, choice: Choice) -> str:
    """What runs where, with which exits and codec, in a line."""
    what = kind(scene, choice)
    if what == SPLIT:
        what = ", ".join(_parts(scene, choice))
    if choice.exits:
        what += f" with {_exits(scene, choice)}"
    return what if choice.edge_end == len(scene.points) - 1 else f"{what}, codec {choice.codec}"


def verdict(
    scene: Scene,
    objective: str,
    best: Choice,
    baselines: Mapping[str, Choice],
    split: Choice | None,
    least_agreement: float,
    fixed: bool,
) -> str:
    """One sentence: what is best for `objective`, and by how much against the others.

    `best`: with the figures that it has as deployed; `split`: the best choice that splits the model, None if there is
    none; `least_agreement`: what was to be kept; `fixed`: whether the plan's choice was limited by the user.
    """
    what = kind(scene, best)
    value = _value(best.figures, objective)
    others = []
    if what == SPLIT:
        head = f"Best for {_words(objective)} is {describe(scene, best)}"
    else:
        head = f"{DOING[what]}{describe(scene, best).removeprefix(what)} is best for {_words(objective)}"
        others.append(
            f"the best split ({describe(scene, split)}) takes {_against(objective, split, value)}"
            if split
            else "there is no split to choose"
        )
    for name, choice in baselines.items():
        if name == what and not best.exits:
            continue
        other = f"{name}{' without early exits' if name == what else ''} takes {_against(objective, choice, value)}"
        if _value(choice.figures, objective) < value:
            lost = choice.figures.agreement < least_agreement - 1e-9
            why = f"keeps only {choice.figures.agreement:.2%}" if lost else RULED_OUT if fixed else HOPED
            other += f" but {why}"
        others.append(other)
    return f"{head}: {_amount(objective, value)} a sample; {', '.join(others)}."


def _parts(scene: Scene, choice: Choice) -> Iterator[str]:
    last = len(scene.points) - 1
    fog = choice.fog_end > choice.edge_end or "fog" in choice.exit_tiers
    if choice.edge_end > 0:
        yield f"device up to {scene.points[choice.edge_end].name!r}"
    else:
        yield "device up to the exit at the input" if "edge" in choice.exit_tiers else "raw input up"
    if fog and choice.fog_end == last:
        yield "then the fog"
    elif fog:
        yield f"fog up to {scene.points[choice.fog_end].name!r}" if choice.fog_end else "the next exit in the fog"
    if choice.fog_end < last:
        yield "then the cloud"


def _exits(scene: Scene, choice: Choice) -> str:
    names = [repr(scene.exits[k].name) for k in choice.exits]
    return f"exit{'s' if len(names) > 1 else ''} {' and '.join(names)}"


def _words(objective: str) -> str:
    return objective.replace("-", " ")


def _value(figures: Figures, objective: str) -> float:
    return {"latency": figures.latency_ms, "bytes": figures.bytes, "device-compute": figures.device_us}[objective]


def _amount(objective: str, value: float) -> str:
    if objective == "latency" and value < 1:
        return f"{_number(1000 * value)} µs"
    return _number(value) + {"latency": " ms", "bytes": " bytes", "device-compute": " µs of the device"}[objective]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _against(objective: str, choice: Choice, best: float) -> str:
    value = _value(choice.figures, objective)
    amount = _amount(objective, value)
    if best > 0 and value >= 2 * best:
        return f"{amount} ({_times(value / best)} times as much)"
    if value == best:
        return f"{amount} too"
    difference = _amount(objective, abs(value - best)).removesuffix(" of the device")
    return f"{amount} ({difference} {'more' if value > best else 'less'})"


def _times(ratio: float) -> str:
    """With the digits that tell: 2.4, 61, 4000."""
    return f"{ratio:.1f}" if ratio < 10 else f"{float(f'{ratio:.2g}'):.0f}"


def front_rows(scene: Scene, plan: Plan) -> list[dict[str, Any]]:
    """The Pareto front and the baselines as the report shows them, the best choice and the baselines marked."""
    baselines = list(plan.baselines.values())
    rows = [*plan.pareto, *(c for c in (plan.best, *baselines) if c not in plan.pareto)]
    return [
        {
            "name": describe(scene, choice),
            "agreement": choice.figures.agreement,
            "latency_ms": choice.figures.latency_ms,
            "bytes": choice.figures.bytes,
            "device_us": choice.figures.device_us,
            "chosen": choice == plan.best,
            "baseline": choice in baselines,
        }
        for choice in rows
    ]
