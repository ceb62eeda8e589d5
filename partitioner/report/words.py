"""Numbers and promises as people read them: 1.2 ms, 3.4 kB, 94.1 %, and a certificate as a sentence.

Between number and unit stands a no-break space, so that a line never ends between them. `None` becomes a dash: not
measured, or not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sluice.wire.manifest import Certificate

NONE = "–"
_SPACE = "\u00a0"
_HARM = {
    "agreement": "get another answer than from the full model",
    "accuracy": "are answered wrongly where the full model is right",
}


def duration(ms: float | None) -> str:
    """A time given in milliseconds, in µs, ms or s."""
    if ms is None:
        return NONE
    return _scaled(ms * 1000, ("µs", "ms", "s")) if ms else f"0{_SPACE}ms"


def size(nbytes: float | None) -> str:
    """Bytes, in powers of 1000."""
    return NONE if nbytes is None else _scaled(nbytes, ("B", "kB", "MB", "GB"))


def rate(bps: float | None) -> str:
    """Bits a second."""
    return NONE if bps is None else _scaled(bps, ("bit/s", "kbit/s", "Mbit/s", "Gbit/s"))


def operations(macs: float | None) -> str:
    """Multiply-accumulates, without their name."""
    return NONE if macs is None else _scaled(macs, ("", "k", "M", "G", "T")).strip(_SPACE)


def count(number: int | None) -> str:
    """A whole number; groups of three from five digits on."""
    if number is None:
        return NONE
    return str(number) if abs(number) < 10_000 else f"{number:,}".replace(",", "\u202f")


def percent(share: float | None) -> str:
    """A share of one; a digit more near 0 and 1, where it is looked at closely."""
    if share is None:
        return NONE
    if share in (0, 1):
        return f"{share * 100:.0f}{_SPACE}%"
    if 0 < share < 0.00005:
        return f"<{_SPACE}0.01{_SPACE}%"
    if 0.99995 <= share < 1:
        return f">{_SPACE}99.99{_SPACE}%"
    return f"{share * 100:.{2 if share < 0.01 or share >= 0.99 else 1}f}{_SPACE}%"


def exactly(share: float) -> str:
    """A share that somebody has set, as it was set: 1 %, 0.5 %, 99.9 %."""
    return f"{share * 100:.6g}{_SPACE}%"


def threshold(value: float | None) -> str:
    """An exit's threshold; above every confidence it never answers."""
    if value is None:
        return NONE
    return "never" if value > 1 else f"{value:.4g}"


def shape(dimensions: Sequence[int]) -> str:
    """A tensor's shape without the batch axis."""
    return f"{_SPACE}×{_SPACE}".join(str(one) for one in dimensions) or "scalar"


def moment(iso: str) -> str:
    """A point in time, to the minute; as it is if it is in no form that is known."""
    try:
        at = datetime.fromisoformat(iso).astimezone(UTC)
    except ValueError:
        return iso
    return f"{at:%Y-%m-%d %H:%M} UTC"


def plain(value: object) -> str:
    """Any setting: lists and tables in one line."""
    if value is None or value in ((), [], {}):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(
            f"{key} {plain(one)}" for key, one in value.items() if not isinstance(one, dict | list | tuple)
        )
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def promise(certificate: Certificate) -> str:
    """What the certificate says of new samples, in one sentence."""
    new = "the samples of new groups, averaged over groups," if certificate.scope == "groups" else "new samples"
    return f"With {_sure(certificate)} confidence, {_most(certificate)} of {new} {_HARM[certificate.criterion]}."


def promise_in_short(certificate: Certificate) -> str:
    """The same for a table."""
    harm = {"agreement": "other answers", "accuracy": "right answers lost"}[certificate.criterion]
    new = " in new groups" if certificate.scope == "groups" else ""
    return f"{_most(certificate)} {harm}{new}, {_sure(certificate)}{_SPACE}sure"


def evidence(certificate: Certificate) -> str:
    """What was seen: n, how many were harmed, by which method."""
    n = f"n{_SPACE}={_SPACE}{count(certificate.n)}"
    of = f" of {count(certificate.groups)} groups" if certificate.groups is not None else ""
    seen = f"{count(certificate.violations)} did ({percent(certificate.violations / certificate.n)})"
    return f"Of {n} samples{of} kept for this test alone, {seen}. Method: {certificate.method}."


def reach(certificate: Certificate) -> str:
    """Whom the promise covers and whom it does not."""
    if certificate.scope == "groups":
        who = f"It covers new groups (people, devices, sites) like the {count(certificate.groups)} that certified."
    elif certificate.groups is not None:
        who = f"It covers new samples of the same {count(certificate.groups)} groups; new groups are not covered."
    else:
        who = "It covers new samples that come about as these did; other people, devices or sites are not covered."
    if certificate.points == 1:
        return who
    return (
        f"{who} It holds for all {certificate.points} certified operating points at once: a device may move among them."
    )


def _scaled(value: float, units: Sequence[str]) -> str:
    """`value` in the largest of `units`, each a thousand of the one before, that leaves a number of at least 1."""
    for unit in units[:-1]:
        if float(_digits(value)) < 1000:
            return f"{_digits(value)}{_SPACE}{unit}"
        value /= 1000
    return f"{_digits(value)}{_SPACE}{units[-1]}"


def _digits(value: float) -> str:
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    if abs(value) < 1:
        return f"{value:.2g}"
    return f"{value:.1f}" if abs(value) < 99.95 else f"{value:.0f}"


def _most(certificate: Certificate) -> str:
    return f"at most {exactly(certificate.epsilon)}"


def _sure(certificate: Certificate) -> str:
    return exactly(1 - certificate.delta)
