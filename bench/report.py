"""What a benchmark reports: rows of repeated measurements, ours and the baseline's, from one run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Row:
    """`ours` and `baseline` hold one figure a repetition, in the same order; a pair was measured back to back."""

    what: str
    unit: str
    ours: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)

    def ratios(self) -> list[float]:
        """Ours over the baseline, pair by pair."""
        return [a / b for a, b in zip(self.ours, self.baseline, strict=False) if b]

    def medians(self) -> tuple[float, float | None, float | None]:
        """Medians of ours, the baseline, and the ratio of pairs."""
        base = statistics.median(self.baseline) if self.baseline else None
        ratios = self.ratios()
        return statistics.median(self.ours), base, statistics.median(ratios) if ratios else None

    def spread(self) -> str:
        """Least and largest ratio (or figure, without a baseline)."""
        values = self.ratios() or self.ours
        return f"{min(values):.3g}..{max(values):.3g}"


@dataclass(slots=True)
class Report:
    """All rows of a benchmark, what it is about, and what a reader has to know of this run."""

    about: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def row(self, what: str, unit: str) -> Row:
        """The row of that name, made on first use."""
        for row in self.rows:
            if row.what == what:
                return row
        self.rows.append(Row(what, unit))
        return self.rows[-1]

    def as_dict(self) -> dict[str, Any]:
        """The report as it stands in JSON."""
        rows = []
        for row in self.rows:
            ours, base, ratio = row.medians()
            rows.append(
                {
                    "what": row.what,
                    "unit": row.unit,
                    "ours_median": ours,
                    "baseline_median": base,
                    "ratio_median": ratio,
                    "spread": row.spread(),
                    "ours": row.ours,
                    "baseline": row.baseline,
                }
            )
        return {"about": self.about, "rows": rows, "notes": self.notes}
