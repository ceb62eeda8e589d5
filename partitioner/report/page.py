"""The report: `report.json` for programs, `report.html` for people, both from one and the same data.

The page needs no network, no other file and no script: plots are SVG inside it, and what little script there is sorts
tables. It begins with what was decided and what is promised; what the data do not have is left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from partitioner.report import words
from partitioner.report.shape import Choice, Point, Report, Segment
from sluice.wire.bundle import write_atomically

JSON, HTML = "report.json", "report.html"


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `report.json` and `report.html` to `folder`; `report` as in `shape.Report`.

    Raises as `files` does; nothing is written then.
    """
    for name, data in files(report).items():
        write_atomically(folder / name, data)


def files(report: dict[str, Any]) -> dict[str, bytes]:
    """Both files by name.

    Raises pydantic's `ValidationError` where the report is not of its shape, `ValueError` for NaN among its settings.
    """
    checked = Report.model_validate(report)
    return {JSON: as_json(checked), HTML: render(checked)}


def as_json(report: Report | dict[str, Any]) -> bytes:
    """The report as JSON, in the order of its shape."""
    checked = Report.model_validate(report)
    return json.dumps(checked.model_dump(mode="json"), allow_nan=False, indent=1, ensure_ascii=False).encode()


def render(report: Report | dict[str, Any]) -> bytes:
    """The report as one HTML page; names in it come from users and are escaped."""
    checked = Report.model_validate(report)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": words.duration,
        "size": words.size,
        "percent": words.percent,
        "exactly": words.exactly,
        "count": words.count,
        "operations": words.operations,
        "rate": words.rate,
        "threshold": words.threshold,
        "shape": words.shape,
        "plain": words.plain,
        "moment": words.moment,
    }
    page = environment.get_template(HTML).render(
        report=checked,
        point=checked.points[0] if checked.points else None,
        promise=words.promise,
        promise_in_short=words.promise_in_short,
        evidence=words.evidence,
        reach=words.reach,
        answers=answers,
        runs=runs,
        crossing_share=crossing_share(checked.segments),
        total_macs=sum(segment.macs for segment in checked.segments) or 1,
        pareto=sorted(checked.pareto, key=_first_the_chosen),
        compared=sorted((c for c in checked.pareto if c.chosen or c.baseline), key=_first_the_chosen),
        codecs=_codecs(checked),
        **_drawn(checked),
    )
    return page.encode()


def answers(report: Report, point: Point) -> list[dict[str, Any]]:
    """Who answers at an operating point: name, tier, share and threshold of each exit, the final one last."""
    ends = [segment for segment in report.segments if segment.exit]
    if len(ends) != len(point.expected.exit_share):
        return []
    return [
        {
            "name": segment.exit.name if segment.exit else "",
            "tier": point.placement[segment.index] if segment.index < len(point.placement) else segment.tier,
            "share": share,
            "threshold": point.thresholds[k] if k < min(len(point.thresholds), len(ends) - 1) else None,
        }
        for k, (segment, share) in enumerate(zip(ends, point.expected.exit_share, strict=True))
    ]


def runs(placement: Sequence[str]) -> list[tuple[str, str]]:
    """(tier, its segments) in order: `("edge", "0–1"), ("cloud", "2")`."""
    found = []
    for tier, members in groupby(range(len(placement)), key=lambda i: placement[i]):
        indices = list(members)
        span = str(indices[0]) if len(indices) == 1 else f"{indices[0]}–{indices[-1]}"
        found.append((tier, span))
    return found


def crossing_share(segments: Sequence[Segment]) -> list[float]:
    """The share of samples that crosses into each segment: those that no exit before it has answered."""
    left, shares = 1.0, []
    for segment in segments:
        shares.append(max(0.0, left))
        left -= segment.exit.share if segment.exit else 0.0
    return shares


def _drawn(report: Report) -> dict[str, Any]:
    """All plots, and the palettes that the page shares with them."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # that it cannot write its cache is nobody's concern
    from partitioner.report import plots, svg  # Matplotlib takes most of a second to import

    right, crowded = _right(report), plots.crowded(report.exits)
    exits = []
    for k, one in enumerate(report.exits):
        used = next((s.exit for s in report.segments if s.exit and s.exit.name == one.name), None)
        exits.append(
            {
                "name": one.name,
                "used": used,
                "final": k == len(report.exits) - 1 and not one.sweep,
                "sweep": plots.sweep(one, used.threshold if used else None, f"sweep{k}", crowded),
                "reliability": plots.reliability(one, right, f"reliability{k}"),
            }
        )
    return {
        "exits": exits,
        "pareto_plot": plots.pareto(report.pareto, "pareto"),
        "links_plot": plots.links(report.links, "links") if report.links else None,
        "splits_plot": plots.splits(report.split_points, "splits"),
        "light": svg.LIGHT,
        "dark": svg.DARK,
    }


def _codecs(report: Report) -> list[str]:
    """Columns of bytes at split points; without those that only repeat the first (raw after float32)."""
    names = list(dict.fromkeys(codec for point in report.split_points for codec in point.bytes))
    return [
        name
        for name in names
        if name == names[0]
        or any(point.bytes[name] != point.bytes.get(names[0]) for point in report.split_points if name in point.bytes)
    ]


def _right(report: Report) -> str:
    """What a right answer is: by the labels, or without them as the full model answers."""
    labelled = any(swept.accuracy is not None for one in report.exits for swept in one.sweep)
    return "are right" if labelled else "agree with the full model"


def _first_the_chosen(choice: Choice) -> tuple[bool, float]:
    return not choice.chosen, choice.latency_ms
