"""The report: complete, safe against names that users give, the same each time, without what the data do not have."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from partitioner.report import words
from partitioner.report.page import render, write_report
from sluice.wire.manifest import Certificate

Dict = dict[str, Any]
CODECS = {"float32": 4.0, "int8": 1.0, "raw": 4.0, "zstd": 3.1, "float16": 2.0, "int8-zstd": 0.46, "coarse": 0.09}
CERTIFICATE = {
    "method": "learn-then-test, fixed sequence, exact binomial",
    "criterion": "agreement",
    "epsilon": 0.01,
    "delta": 0.05,
    "n": 1234,
    "violations": 5,
    "points": 3,
    "scope": "samples",
    "groups": None,
}


def exit_by_itself(name: str, sharpness: float, random: np.random.Generator, final: bool = False) -> Dict:
    """An exit whose confidences crowd at 1 and are a little too high."""
    confidence = random.beta(sharpness, 0.55, 1200)
    agrees = random.random(1200) < confidence**1.25
    right = np.where(random.random(1200) < 0.985, agrees, ~agrees)
    swept = []
    for threshold in [] if final else np.quantile(confidence, np.linspace(0.02, 0.99, 60)).tolist():
        over = confidence >= threshold
        swept.append(
            {
                "threshold": threshold,
                "share": float(over.mean()),
                "agreement": float(agrees[over].mean()),
                "accuracy": float(right[over].mean()),
            }
        )
    return {"name": name, "sweep": swept, "reliability": reliability(confidence, right)}


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Dict:
    bins, ece = [], 0.0
    for low in np.arange(0, 1, 0.1):
        inside = (confidence >= low) & (confidence <= low + 0.1)
        if inside.any():
            bins.append(
                {
                    "confidence": float(confidence[inside].mean()),
                    "right": float(right[inside].mean()),
                    "count": int(inside.sum()),
                }
            )
            ece += abs(bins[-1]["confidence"] - bins[-1]["right"]) * inside.mean()
    return {"bins": bins, "ece": ece}


def point(name: str, codec: str, thresholds: list[float], shares: list[float], **expected: float) -> Dict:
    return {
        "id": name,
        "placement": ["edge", "fog", "cloud"],
        "codec": codec,
        "thresholds": thresholds,
        "certificate": CERTIFICATE,
        "uncertified_because": None,
        "expected": {"exit_share": shares, "crossing_bytes": [61.2, 44.0], "full_model_accuracy": 0.9312, **expected},
    }


def split_points(n: int, cut: tuple[int, ...] = (), exits: tuple[int, ...] = ()) -> list[Dict]:
    """Points of a net whose tensors shrink in steps while its MACs grow."""
    found = []
    for i in range(n):
        shape = [128, 9] if i == 0 else [max(4, 128 >> (1 + 4 * i // n)), 16 + 8 * (4 * i // n)]
        size = float(np.prod(shape))
        done = int(1_140_000 * (i / n) ** 0.8)
        found.append(
            {
                "name": "input" if i == 0 else f"block_{i // 3 + 1}_{('conv', 'bn', 'add')[i % 3]}",
                "tensors": [{"shape": shape, "dtype": "float32"}],
                "bytes": {
                    codec: size * each for codec, each in CODECS.items() if i % 3 != 1 or codec in ("float32", "int8")
                },
                "macs_before": done,
                "macs_after": 1_140_000 - done,
                "block_end": i % 3 == 2 or i == 0,
                "chosen": i in cut,
                "exit": i in exits,
            }
        )
    return found


def strategies(rates: list[float]) -> list[Dict]:
    """Waiting, bytes that go up from the device, share of samples that wait for it."""
    known = [
        ("edge 0, fog 1, cloud 2", 6.4, 61.2 + 250, 0.21, True),
        ("all on the device", 61.9, 0, 0, False),
        ("raw input to the fog", 0.2, 4608 + 250, 1, False),
        ("raw input to the cloud", 0.2, 4608 + 250, 1.25, False),
        ("full model split at block_4_add", 0.9, 410 + 250, 1, False),
    ]
    return [
        {
            "name": name,
            "latency_ms": [own + share * (size * 8 / rate * 1000 + 50) for rate in rates],
            "chosen": chosen,
        }
        for name, own, size, share, chosen in known
    ]


def pareto(random: np.random.Generator) -> list[Dict]:
    chosen = {
        "name": "edge 0, fog 1, cloud 2",
        "latency_ms": 17.4,
        "bytes": 66.1,
        "device_us": 6100.0,
        "agreement": 0.9951,
    }
    baselines = [
        {"name": "all on the device", "latency_ms": 61.9, "bytes": 24.0, "device_us": 61900.0, "agreement": 1.0},
        {"name": "raw input to the fog", "latency_ms": 88.4, "bytes": 4858.0, "device_us": 12.0, "agreement": 1.0},
        {"name": "raw input to the cloud", "latency_ms": 108.2, "bytes": 4858.0, "device_us": 12.0, "agreement": 1.0},
    ]
    others = []
    for i, share in enumerate(np.sort(random.random(12))):
        others.append(
            {
                "name": f"exit at block_{i + 1}, coarse",
                "latency_ms": 4 + 70 * float(share),
                "bytes": 40 + 900 * float(share) ** 2,
                "device_us": 3000 + 32_000 * (1 - float(share)),
                "agreement": 0.99 + 0.01 * float(share),
            }
        )
    return [{**chosen, "chosen": True}, *({**one, "baseline": True} for one in baselines), *others]


def classifier() -> Dict:
    """A report with everything: three segments on three tiers, two early exits, labels and groups."""
    random = np.random.default_rng(3)
    rates = np.geomspace(1e4, 1e8, 25).tolist()
    ends: list[tuple[str, str, int, str, float, float, float, float | None]]
    ends = [("block_1_add", "exit-block_1_add", 310_000, "edge", 0.708, 0.9981, 0.9312, 0.8234)]
    ends += [("block_3_add", "exit-block_3_add", 402_000, "fog", 0.171, 0.9903, 0.9133, 0.7871)]
    ends += [("activity", "activity", 428_000, "cloud", 0.121, 0.9815, 0.8872, None)]
    crossings = [([128, 9], 4608.0), ([32, 24], 61.2), ([16, 40], 44.0)]
    return {
        "model": "har-cnn",
        "version": 3,
        "task": "classification",
        "digest": "9f2b6c31a5d8e7f04c1b2a3948576d6e5f40312c2b1a09f8e7d6c5b4a3928170",
        "created_at": "2026-11-21T00:40:12+00:00",
        "settings": {
            "exits": "auto",
            "split": "auto",
            "quantize": "int8",
            "max_accuracy_loss": 0.01,
            "confidence": 0.95,
            "criterion": "agreement",
            "objective": "latency",
            "uplink": "1Mbit/s,50ms",
            "thresholds": None,
            "results_sent": True,
            "device": {"runtime": "litert 2.3.0", "machine": "aarch64", "cpu": "Cortex-A72", "segments": [{"us": 1}]},
            "seed": 0,
        },
        "verdict": "Two early exits and three tiers: 71 % of the samples end on the device, and the mean answer comes "
        "5.1 times sooner than with the raw input sent to the fog.",
        "warnings": [
            "The certificate covers new samples of the same 14 people, not new people: 41 are needed for that."
        ],
        "data": {"n": 5200, "parts": {"train": 2100, "temperature": 620, "plan": 1246, "certify": 1234}, "groups": 14},
        "segments": [
            {
                "index": k,
                "name": name,
                "macs": macs,
                "file_bytes": 24_312 + 9000 * k,
                "tier": tier,
                "exit": {
                    "name": exit_name,
                    "share": share,
                    "accuracy": accuracy,
                    "agreement": agreement,
                    "temperature": 1.31,
                    "threshold": threshold,
                },
                "reference_us": 17.4 + 6 * k,
                "crossing": [{"name": f"h{k}", "shape": crossings[k][0], "dtype": "float32"}],
                "crossing_bytes": crossings[k][1],
            }
            for k, (name, exit_name, macs, tier, share, agreement, accuracy, threshold) in enumerate(ends)
        ],
        "points": [
            point("default", "coarse", [0.8234, 0.7871], [0.708, 0.171, 0.121], agreement=0.9951, accuracy=0.9305)
            | {
                "expected": {
                    **point(
                        "",
                        "",
                        [],
                        [0.708, 0.171, 0.121],
                        agreement=0.9951,
                        accuracy=0.9305,
                        latency_ms=17.4,
                        bytes=66.1,
                        device_us=6100.0,
                    )["expected"]
                }
            },
            point(
                "careful",
                "int8-zstd",
                [0.9421, 0.9012],
                [0.522, 0.221, 0.257],
                agreement=0.9984,
                accuracy=0.931,
                latency_ms=31.7,
                bytes=402.0,
                device_us=5800.0,
            ),
            point(
                "no-exit",
                "int8-zstd",
                [2.0, 2.0],
                [0.0, 0.0, 1.0],
                agreement=0.9992,
                accuracy=0.9312,
                latency_ms=66.3,
                bytes=1480.0,
                device_us=4700.0,
            ),
        ],
        "exits": [
            exit_by_itself("exit-block_1_add", 1.6, random),
            exit_by_itself("exit-block_3_add", 2.4, random),
            exit_by_itself("activity", 3.5, random, final=True),
        ],
        "pareto": pareto(random),
        "links": {"uplink": {"rate_bps": 1e6, "delay_s": 0.05}, "rates_bps": rates, "strategies": strategies(rates)},
        "split_points": split_points(15, cut=(5, 11), exits=(5, 11)),
        "groups": {
            "risk": {f"person {i}": float(risk) for i, risk in enumerate(random.beta(0.8, 160, 14))},
            "n": {f"person {i}": 60 + 5 * i for i in range(14)},
            "promise": "For new samples of these 14 people the promise holds; for new people nothing is promised.",
        },
        "tools": {"sluice": "0.1.0", "keras": "3.15.1", "tensorflow-cpu": "2.21.0", "ai-edge-litert": "2.3.0"},
    }


def tensors() -> Dict:
    """The least: a model that does not classify, cut once."""
    return {
        "model": "denoiser",
        "version": 1,
        "task": "tensors",
        "digest": "ab" * 32,
        "created_at": "2026-11-21T00:40:12+00:00",
        "settings": {"quantize": "float32"},
        "verdict": "Cut at encoder: the device computes a third of the model and sends 512 B instead of 3.1 kB.",
        "warnings": [],
        "data": {"n": 64, "parts": {"train": 0, "temperature": 20, "plan": 44, "certify": 0}, "groups": None},
        "segments": [
            {
                "index": k,
                "name": name,
                "macs": macs,
                "file_bytes": None,
                "tier": tier,
                "exit": None,
                "reference_us": None,
                "crossing": [{"name": f"h{k}", "shape": [28, 28, 1], "dtype": "float32"}],
                "crossing_bytes": 512.0,
            }
            for k, (name, macs, tier) in enumerate([("encoder", 90_000, "edge"), ("decoder", 190_000, "cloud")])
        ],
        "points": [
            {
                "id": "default",
                "placement": ["edge", "cloud"],
                "codec": "float16",
                "thresholds": [],
                "certificate": None,
                "uncertified_because": None,
                "expected": {"latency_ms": 60.2, "bytes": 762.0, "device_us": 21.0},
            }
        ],
        "exits": [],
        "pareto": [],
        "links": None,
        "split_points": [],
        "groups": None,
        "tools": {},
    }


class Page(HTMLParser):
    """What a browser would make of the page: elements, ids, links, and that everything opened is closed."""

    VOID = frozenset({"meta", "link", "br", "input", "img", "hr"})

    def __init__(self, page: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.source = page.decode()
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src"):
                self.links.append(value or "")
            self.links += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def everywhere(value: Any, name: str) -> Any:
    """`value` with every free text in it replaced by `name`."""
    fixed = {"task", "tier", "placement", "certificate", "created_at"}
    if isinstance(value, dict):
        free = {"risk", "n", "bytes", "settings", "tools"}
        return {
            key: one
            if key in fixed
            else {name + inner: everywhere(deep, name) for inner, deep in one.items()}
            if key in free and isinstance(one, dict)
            else everywhere(one, name)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [everywhere(one, name) for one in value]
    return name if isinstance(value, str) else value


@pytest.fixture(scope="module")
def full() -> Page:
    return Page(render(classifier()))


def test_it_begins_with_what_was_decided_and_promised(full: Page) -> None:
    text = full.text.replace("\u00a0", " ")
    parts = ["Two early exits and three tiers", "With 95 % confidence, at most 1 % of new samples get another answer"]
    parts += [
        "n = 1234",
        "41 are needed for that",
        "17.4 ms",
        "66.1 B",
        "The model in segments",
        "What the manifest lists",
    ]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert "It holds for all 3 certified operating points" in text


def test_every_part_of_the_report_is_on_the_page(full: Page) -> None:
    for section in ("model", "points", "exits", "pareto", "links", "splits", "groups", "made"):
        assert section in full.ids
    assert full.tags.count("svg") == 8, (
        "two exits with two plots, the final with one, Pareto front, links, split points"
    )
    for shown in ("exit-block_1_add", "70.8 %", "61.2 B", "29.2 % of samples", "≥ 0.8234", "never", "block_5_add"):
        assert shown in full.text
    for shown in ("chosen: 0.8234", "Expected calibration error", "raw input to the fog", "person 7", "Cortex-A72"):
        assert shown in full.text
    assert full.text.count("float16") == 1, "a column of the table of split points"
    assert not re.search(r">raw<", full.source), "which would only repeat float32"
    assert full.source.count('role="img" aria-label="') == 8


def test_the_page_needs_nothing_but_itself(full: Page) -> None:
    assert not re.search(r"https?:|@import|//cdn", full.source)
    assert full.links, "links within the page"
    assert len(full.ids) == len(set(full.ids))
    assert {link.removeprefix("#") for link in full.links} <= set(full.ids)
    assert all(link.startswith("#") for link in full.links)


@pytest.mark.parametrize("name", ["<script>alert(1)</script>$a$b_{", "'\"><img src=x onerror=alert(1)>漢\x00字]]>"])
def test_names_are_only_names(full: Page, name: str) -> None:
    page = Page(render(everywhere(classifier(), name)))
    assert page.tags.count("script") == 1
    assert set(page.tags) <= set(full.tags)
    assert page.attributes <= full.attributes
    assert name[:20] in page.text


def test_the_same_report_gives_the_same_page(full: Page) -> None:
    assert render(classifier()).decode() == full.source


def test_what_a_model_does_not_have_is_left_out() -> None:
    page = Page(render(tensors()))
    assert "svg" not in page.tags
    assert {"model", "points", "made"} == {one for one in page.ids if one in page.source and "-" not in one}
    assert "This model does not classify" in page.text
    for absent in ("Accuracy", "accuracy", "As full model", "Promise", "exit,", "None", "nan"):
        assert absent not in page.text


def test_the_least_that_a_report_can_say() -> None:
    page = Page(render({"model": "m", "version": 1, "verdict": "Nothing to do."}))
    assert "Nothing to do." in page.text
    assert "svg" not in page.tags


def test_figures_that_do_not_differ_can_be_drawn() -> None:
    """Confidences that are all 1, ways to run that cost the same or nothing, a link that does not matter."""
    sure = {"bins": [{"confidence": 1.0, "right": 1.0, "count": 5}], "ece": 0.0}
    same = [{"name": str(i), "latency_ms": 0.0, "bytes": 0.0, "device_us": 0.0, "baseline": i > 0} for i in range(3)]
    flat = {"uplink": {"rate_bps": 1e9, "delay_s": 0}, "rates_bps": [1e5, 2e5]}
    report = tensors() | {
        "exits": [
            {"name": "a", "sweep": [{"threshold": 1.0, "share": 1.0, "agreement": 1.0}] * 2, "reliability": sure}
        ],
        "pareto": same,
        "links": flat | {"strategies": [{"name": str(i), "latency_ms": [3.0, 3.0]} for i in range(9)]},
        "split_points": [
            {**one, "bytes": {"float32": 0}, "macs_before": 0, "macs_after": 0} for one in split_points(4)
        ],
    }
    assert Page(render(report)).tags.count("svg") == 4


def test_without_labels_no_word_of_accuracy() -> None:
    report = classifier() | {"pareto": [], "links": None, "split_points": [], "groups": None, "data": None}
    for one in report["points"]:
        one["expected"] = {k: v for k, v in one["expected"].items() if "accuracy" not in k}
        one |= {"certificate": None, "uncertified_because": "298 samples cannot certify 1 %: 299 are needed"}
    for segment in report["segments"]:
        segment["exit"]["accuracy"] = None
    for one in report["exits"]:
        for swept in one["sweep"]:
            swept["accuracy"] = None
    report["segments"][0]["exit"]["threshold"] = 2.0
    page = Page(render(report))
    assert "Nothing is promised 298 samples cannot certify 1 %: 299 are needed" in page.text
    assert "ccuracy" not in page.text.replace("max_accuracy_loss", "")
    assert "right" not in page.text.replace("Right: whether", "")
    assert "Share of its answers that agree with the full model" in page.text
    assert "never answers early" in page.text


def test_a_large_report_is_quick_and_small() -> None:
    report = classifier()
    report["split_points"] = split_points(80, cut=(14, 41), exits=(14, 41))
    for one in report["exits"]:
        one["sweep"] = one["sweep"] and [
            {"threshold": i / 1000, "share": 1 - i / 1001, "agreement": 0.9 + i / 1e4, "accuracy": 0.9}
            for i in range(1000)
        ]
    report["pareto"] += [{**report["pareto"][-1], "name": f"way {i}", "latency_ms": 5.0 + i} for i in range(40)]
    begun = time.process_time()
    page = render(report)
    assert time.process_time() - begun < 3
    assert len(page) < 1_000_000


def test_both_files_say_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_report(folder, tensors())
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    written = json.loads((folder / "report.json").read_bytes())
    assert list(written)[:3] == ["model", "version", "task"]
    assert {key: written[key] for key in ("verdict", "digest", "exits", "groups", "settings")} == {
        key: tensors()[key] for key in ("verdict", "digest", "exits", "groups", "settings")
    }
    write_report(folder, tensors() | {"verdict": "Another."})
    assert "Another." in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        {"verdikt": "misspelt"},
        {"settings": {"rate": float("nan")}},
        {"pareto": [{"name": "x", "latency_ms": float("inf"), "bytes": 1, "device_us": 1}]},
    ],
)
def test_a_report_that_is_none_leaves_nothing(tmp_path: Path, wrong: Dict) -> None:
    with pytest.raises((ValidationError, ValueError)):
        write_report(tmp_path / "out", tensors() | wrong)
    assert not (tmp_path / "out").exists()


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    report = tensors()
    report["points"][0]["expected"] = {
        "latency_ms": np.float64(3.25),
        "bytes": np.float32(10),
        "device_us": np.int64(7),
    }
    write_report(tmp_path, report)
    assert json.loads((tmp_path / "report.json").read_bytes())["points"][0]["expected"]["latency_ms"] == 3.25


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (words.duration(0.0178), "17.8 µs"),
        (words.duration(1.234), "1.2 ms"),
        (words.duration(999.7), "1 s"),
        (words.duration(0), "0 ms"),
        (words.size(58), "58 B"),
        (words.size(3412.0), "3.4 kB"),
        (words.size(None), "–"),
        (words.rate(250_000), "250 kbit/s"),
        (words.operations(1_140_000), "1.1 M"),
        (words.count(1234), "1234"),
        (words.count(12_345), "12\u202f345"),
        (words.percent(0.941), "94.1 %"),
        (words.percent(0.99514), "99.51 %"),
        (words.percent(0.999999), "> 99.99 %"),
        (words.percent(1), "100 %"),
        (words.exactly(0.01), "1 %"),
        (words.exactly(1 - 0.05), "95 %"),
        (words.threshold(2.0), "never"),
        (words.shape(()), "scalar"),
        (words.moment("2026-11-21T00:40:12+02:00"), "2026-11-20 22:40 UTC"),
        (words.plain({"a": 1, "b": [1, 2], "c": None}), "a 1, c –"),
    ],
)
def test_numbers_are_for_people(said: str, wanted: str) -> None:
    assert said.replace("\u00a0", " ") == wanted


def test_a_promise_says_whom_it_covers() -> None:
    certificate = Certificate.model_validate(CERTIFICATE)
    accuracy = certificate.model_copy(update={"criterion": "accuracy", "groups": 14, "points": 1})
    groups = certificate.model_copy(update={"scope": "groups", "groups": 41})
    assert "are answered wrongly where the full model is right" in words.promise(accuracy)
    assert words.reach(accuracy) == "It covers new samples of the same 14 groups; new groups are not covered."
    assert "of the samples of new groups, averaged over groups, get" in words.promise(groups)
    assert words.reach(groups).startswith("It covers new groups (people, devices, sites) like the 41 that certified.")
