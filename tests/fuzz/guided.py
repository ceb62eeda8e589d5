"""Fuzzing guided by coverage (atheris, libFuzzer), where decoding is Python of our own: messages and tensors.

A process a decoder: libFuzzer bounds time and memory itself and writes the input that broke something to a file.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.targets import Target

TARGETS = ("messages", "tensor", "unpack")
TIMEOUT_S = 20
MEMORY_MB = 1500
LONGEST = 20_000


def run(target: str, seed: int, count: int, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Feed `count` inputs to `target` in a process of its own; (words, input) of what must not happen."""
    place = folder / f"guided-{target}"
    corpus, found = place / "corpus", place / "found"
    for made in (corpus, found):
        made.mkdir(parents=True)
    log = place / "log"
    with log.open("wb") as out:
        code = subprocess.run(
            [
                sys.executable, "-m", "tests.fuzz.guided", target, str(corpus), f"-runs={count}", f"-seed={seed}",
                f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={LONGEST}",
                f"-artifact_prefix={found}/", "-verbosity=0",
            ],
            stdout=out, stderr=subprocess.STDOUT, check=False,
        ).returncode  # fmt: skip
    inputs = list(found.iterdir())
    for file in inputs:
        yield f"guided: {file.name.split('-')[0]}: {_cause(log)}", file.read_bytes()
    if code != 0 and not inputs:
        raise SystemExit(f"guided fuzzing of {target} did not work:\n{log.read_text(errors='replace')[-3000:]}")


def _cause(log: Path) -> str:
    """The line of the log that names the error."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line for line in lines if "Error" in line or "ERROR" in line), "no word of why")[:200]


def main() -> None:
    """One decoder, by libFuzzer; ends the process."""
    import atheris

    with atheris.instrument_imports(include=["sluice.wire", "sluice.stage.step"]):
        from tests.fuzz.targets import targets
    from tests.fuzz.feed import DOCUMENTED

    name, corpus = sys.argv[1], Path(sys.argv[2])
    target = targets()[name]
    for number, seed in enumerate(_seeds(target)):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        try:
            target.feed(data)
        except DOCUMENTED:
            return

    atheris.Setup([sys.argv[0], *sys.argv[2:]], one)
    atheris.Fuzz()


def _seeds(target: Target) -> list[bytes]:
    """Valid messages to begin from, small enough to be changed often."""
    import warnings

    from hypothesis.errors import NonInteractiveExampleWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonInteractiveExampleWarning)
        return [seed for _ in range(20) for seed in target.valid.example() if len(seed) <= LONGEST]


if __name__ == "__main__":
    main()
