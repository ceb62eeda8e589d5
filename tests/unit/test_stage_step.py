"""One step: the cheapest exit that is certain answers, everything else travels on, and nobody is forgotten.

The segments are three lines of NumPy each: exit k looks at `x[k]` alone, 9 is certain, 0 is not.
"""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest

from sluice.stage.segment import Arrays, RunningSegment
from sluice.stage.step import Stage, Work, best_belief, loaded_by, predict, share_of, step, unpack
from sluice.wire.codec import encode_tensor
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest
from sluice.wire.messages import Audit, Belief, Offload, Outcome, Prediction, decode, encode, sample_of
from sluice.wire.names import Tier
from tests.unit.wire_support import manifest, manifest_dict, offload, tensor_spec

WHOLE = manifest()
SURE, UNSURE = 9.0, 0.0


@dataclass
class Function:
    """What a step knows of a segment: its place in the manifest and `run`."""

    index: int

    def run(self, tensors: Arrays, *, lent: bool = False) -> Arrays:
        del lent
        known = ("x", "h0", "h1")[self.index]
        signal = tensors[known][:, :1].astype(np.float32)
        made: Arrays = {f"l{self.index}": np.concatenate([np.zeros_like(signal), signal], axis=1)}
        if self.index < 2:
            made[f"h{self.index}"] = tensors[known][:, 1:].copy()
        return made


def stage(tier: Tier, whole: Manifest = WHOLE) -> Stage:
    share = loaded_by(whole, tier)
    segments = [cast(RunningSegment, Function(index)) for index in share]
    return Stage(tier, "ab" * 32, whole, share.start, segments)


def work(*signals: float, seq: int = 0, **changes: Any) -> Work:
    """A sample at the device, `x` of four numbers."""
    x = np.array([*signals, *[UNSURE] * 4][:4], np.float32)
    start = offload(seq=seq, next_segment=0, tier="edge", tensors=(), beliefs=(), compute_us={})
    before = Offload(**{name: getattr(start, name) for name in start.__slots__} | changes)
    return Work(before, {"x": x})


def onward(outcome: Outcome) -> Work:
    """The sample where it arrives: over the wire and unpacked."""
    arrived = decode(encode(outcome))
    assert isinstance(arrived, Offload)
    return unpack(arrived, WHOLE)


def journey(*signals: float) -> Prediction:
    outcome = step(stage("edge"), [work(*signals)])[0]
    for tier in ("fog", "cloud"):
        if isinstance(outcome, Offload):
            assert outcome.tier == tier
            outcome = step(stage(outcome.tier), [onward(outcome)])[0]
    assert isinstance(outcome, Prediction)
    return outcome


@pytest.mark.parametrize(
    ("signals", "tier", "number", "reason"),
    [
        ((SURE,), "edge", 0, "exit"),
        ((UNSURE, SURE), "fog", 1, "exit"),
        ((UNSURE, UNSURE, SURE), "cloud", 2, "last"),
        ((UNSURE, UNSURE, UNSURE), "cloud", 2, "last"),
    ],
)
def test_the_first_exit_that_is_certain_answers(
    signals: tuple[float, ...], tier: str, number: int, reason: str
) -> None:
    answer = journey(*signals)
    assert (answer.tier, answer.exit, answer.reason, answer.status) == (tier, number, reason, "final")
    sure = SURE in signals
    assert answer.label == int(sure) and answer.confidence == pytest.approx(1 if sure else 0.5, abs=1e-3)
    assert np.frombuffer(answer.outputs, "<f4").tolist() == pytest.approx(
        [1 - answer.confidence, answer.confidence], abs=1e-6
    )
    assert sample_of(answer) == sample_of(work().offload)
    assert decode(encode(answer)) == answer


def test_what_goes_on_takes_what_the_next_segment_needs_and_what_exits_thought() -> None:
    [first] = step(stage("edge"), [work(UNSURE, UNSURE, 3.0, 4.0)])
    assert isinstance(first, Offload) and (first.tier, first.next_segment) == ("fog", 1)
    assert {t.name: np.frombuffer(t.data, "<f4").tolist() for t in first.tensors} == {
        "h0": [UNSURE, 3.0, 4.0],
        "x": [UNSURE, UNSURE, 3.0, 4.0],
    }
    [second] = step(stage("fog"), [onward(first)])
    assert isinstance(second, Offload) and (second.tier, second.next_segment) == ("cloud", 2)
    arrived = onward(second)
    assert arrived.tensors["x"].tolist() == [UNSURE, UNSURE, 3.0, 4.0], "passed on by two segments, untouched"
    assert arrived.tensors["h1"].tolist() == [3.0, 4.0]
    assert second.beliefs == (Belief(0, 0, 0.5), Belief(1, 0, 0.5))
    assert best_belief(second) == Belief(0, 0, 0.5) and best_belief(work().offload) is None


def test_the_surest_belief_is_the_best() -> None:
    assert best_belief(offload(beliefs=(Belief(0, 1, 0.4), Belief(1, 2, 0.7), Belief(2, 3, 0.6)))) == Belief(1, 2, 0.7)


def test_the_codec_of_the_operating_point_is_applied() -> None:
    [sent] = step(stage("edge"), [work(UNSURE, 1.1, 2.0, operating_point="small")])
    assert isinstance(sent, Offload)
    assert {tensor.codec for tensor in sent.tensors} == {"int8-zstd"}
    assert onward(sent).tensors["h0"].tolist() == [1.0, 2.0, UNSURE], "to the nearest half, the scale"


def test_several_segments_on_one_tier_run_at_once() -> None:
    works = [work(UNSURE, second, third, operating_point="two-fog") for second, third in [(9, 0), (0, 9), (0, 0)]]
    sent = step(stage("edge"), works)
    answers = step(stage("fog"), [onward(outcome) for outcome in sent])
    assert [(a.exit, a.tier, a.reason) for a in answers if isinstance(a, Prediction)] == [
        (1, "fog", "exit"),
        (2, "fog", "last"),
        (2, "fog", "last"),
    ]


def test_all_on_one_tier_leaves_nothing_to_send() -> None:
    works = [work(*signals, operating_point="all-edge") for signals in [(9,), (0, 9), (0, 0, 9), (0, 0, 0)]]
    answers = step(stage("edge"), works)
    assert [(a.exit, a.reason) for a in answers if isinstance(a, Prediction)] == [
        (0, "exit"),
        (1, "exit"),
        (2, "last"),
        (2, "last"),
    ]


def test_a_raw_input_may_be_offloaded() -> None:
    """next_segment 0: the first segment is not placed on the device."""
    parts = manifest_dict()
    parts["operating_points"][0]["placement"] = ["fog", "fog", "cloud"]
    whole = Manifest.model_validate(parts)
    raw = work(UNSURE, SURE, 3.0)
    tensor = encode_tensor(raw.tensors["x"], whole.inputs[0], "raw")
    sent = offload(next_segment=0, beliefs=(), tensors=(tensor,))
    [answer] = step(stage("fog", whole), [unpack(sent, whole)])
    assert isinstance(answer, Prediction) and answer.exit == 1


def test_an_audit_is_run_through_to_the_final_exit() -> None:
    """However sure the exits on its way are; what they thought travels with it."""
    audit = Audit(of=3, exit=0, label=1)
    outcome = step(stage("edge"), [work(SURE, SURE, SURE, audit=audit, seq=4)])[0]
    for tier in ("fog", "cloud"):
        assert isinstance(outcome, Offload) and (outcome.tier, outcome.audit, outcome.seq) == (tier, audit, 4)
        outcome = step(stage(outcome.tier), [onward(outcome)])[0]
    assert isinstance(outcome, Prediction)
    assert (outcome.exit, outcome.label, outcome.reason, outcome.audit) == (2, 1, "last", audit)
    assert decode(encode(outcome)) == outcome


def test_audits_and_samples_share_no_batch() -> None:
    assert work(SURE).kind != work(SURE, audit=Audit(of=3, exit=0, label=1)).kind
    assert work(SURE).kind != work(SURE, operating_point="small").kind


def test_outcomes_are_in_the_order_of_the_works() -> None:
    random = np.random.default_rng(0)
    signals = random.choice([SURE, UNSURE], (50, 3))
    works = [work(*row, seq=seq, source_id=f"reading {seq}") for seq, row in enumerate(signals.tolist())]
    edge = step(stage("edge"), works)
    assert [outcome.seq for outcome in edge] == list(range(50))
    assert [isinstance(outcome, Prediction) for outcome in edge] == (signals[:, 0] == SURE).tolist()
    left = [outcome for outcome in edge if isinstance(outcome, Offload)]
    fog = step(stage("fog"), [onward(outcome) for outcome in left])
    assert [outcome.source_id for outcome in fog] == [outcome.source_id for outcome in left]
    certain = [signals[outcome.seq, 1] == SURE for outcome in fog]
    assert [isinstance(outcome, Prediction) for outcome in fog] == certain


def test_a_batch_is_answered_as_each_alone() -> None:
    rows = [(SURE,), (UNSURE, SURE), (UNSURE,), (SURE, SURE)]

    def told(outcome: Outcome) -> Any:
        if isinstance(outcome, Prediction):
            return (outcome.exit, outcome.label, outcome.confidence, outcome.outputs)
        return (outcome.next_segment, outcome.tensors, outcome.beliefs)

    together = step(stage("edge"), [work(*row) for row in rows])
    assert [told(o) for o in together] == [told(step(stage("edge"), [work(*row)])[0]) for row in rows]


def test_a_sample_that_is_not_a_number_is_answered_last_and_its_neighbour_as_ever() -> None:
    works = [work(float("nan")), work(SURE)]
    lost, answered = step(stage("edge"), works)
    assert isinstance(lost, Offload) and lost.beliefs[0].confidence == 0
    assert isinstance(answered, Prediction) and answered.exit == 0
    assert decode(encode(lost)) == lost
    [last] = step(stage("edge"), [work(0, 0, float("nan"), operating_point="all-edge")])
    assert isinstance(last, Prediction) and (last.reason, last.confidence) == ("last", 0)
    assert isinstance(decode(encode(last)), Prediction)


def test_what_is_not_placed_here_is_refused() -> None:
    wrong: list[tuple[Tier, dict[str, Any], str]] = [
        ("edge", {"next_segment": 1}, "segment 1 is not placed on edge at 'default'"),
        ("cloud", {}, "segment 0 is not placed on cloud at 'default'"),
        ("edge", {"next_segment": 3}, "segment 3 is not placed on edge"),
        ("edge", {"operating_point": "none"}, "operating point 'none' is not in the manifest"),
    ]
    for tier, changes, reason in wrong:
        with pytest.raises(PermanentError, match=reason):
            step(stage(tier), [work(**changes)])


def test_shares_of_the_tiers() -> None:
    point = WHOLE.operating_point("two-fog")
    assert [list(share_of(point, tier)) for tier in ("edge", "fog", "cloud")] == [[0], [1, 2], []]
    assert [list(loaded_by(WHOLE, tier)) for tier in ("edge", "fog", "cloud")] == [[0, 1, 2], [1, 2], [2]]
    parts = manifest_dict()
    parts["operating_points"] = parts["operating_points"][3:]
    assert not loaded_by(Manifest.model_validate(parts), "cloud")


def tensors() -> dict[str, Any]:
    arrays = {"h0": np.ones(3, np.float32), "x": np.ones(4, np.float32)}
    return {spec.name: encode_tensor(arrays[spec.name], spec, "raw") for spec in WHOLE.crossing(1)}


def test_unpack_takes_exactly_what_crosses() -> None:
    made = tensors()
    unpacked = unpack(offload(tensors=(made["x"], made["h0"])), WHOLE)
    assert {name: array.tolist() for name, array in unpacked.tensors.items()} == {"x": [1.0] * 4, "h0": [1.0] * 3}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tensors": ()}, r"tensors \[\] where segment 1 needs \['h0', 'x'\]"),
        ({"tensors": (made["h0"],)}, r"tensors \['h0'\] where"),
        ({"tensors": (made["h0"], made["h0"])}, r"tensors \['h0', 'h0'\] where"),
        ({"tensors": (made["h0"], made["x"], made["x"])}, r"\['h0', 'x', 'x'\] where"),
        ({"tensors": (made["h0"], made["x"]), "next_segment": 2}, r"where segment 2 needs \['h1', 'x'\]"),
        ({"tensors": (made["h0"], made["x"]), "next_segment": 3}, "next_segment 3 of 3 segments"),
        ({"tensors": (made["h0"], made["x"]), "model": "other"}, "offload is of model 'other', its bundle of 'gate'"),
    ]
    for changes, reason in wrong:
        with pytest.raises(PermanentError, match=reason):
            unpack(offload(**changes), WHOLE)
    short = encode_tensor(np.ones(2, np.float32), WHOLE.crossing(2)[0], "raw")
    with pytest.raises(PermanentError, match="needs"):
        unpack(offload(tensors=(short, made["x"])), WHOLE)


def test_what_a_sample_has_cost_so_far_is_kept() -> None:
    spent: dict[str, Any] = {"compute_us": {"edge": 1000}, "bytes_sent": 310}
    [answer] = step(stage("edge"), [work(SURE, **spent)])
    [sent] = step(stage("edge"), [work(UNSURE, **spent)])
    for outcome in (answer, sent):
        assert outcome.compute_us["edge"] >= 1000 and outcome.bytes_sent == 310
    told = predict(offload(**spent), Belief(0, 1, 0.5), "fog", "final", "expired", spent_us=7)
    assert (told.compute_us, told.bytes_sent) == ({"edge": 1000, "fog": 7}, 310)


def test_a_prediction_keeps_who_the_sample_is_and_what_its_exit_thought() -> None:
    before = offload(source_id="reading 9", trace="00-ab")
    told = predict(before, Belief(1, 1, 0.4), "edge", "provisional", "timeout")
    kept = ("device_id", "epoch", "seq", "source_id", "model", "bundle", "operating_point", "captured_at", "trace")
    assert [getattr(told, name) for name in kept] == [getattr(before, name) for name in kept]
    assert (told.exit, told.label, told.confidence, told.outputs) == (1, 1, 0.4, b"")
    assert (told.tier, told.status, told.reason) == ("edge", "provisional", "timeout")
    assert told.compute_us == before.compute_us, "no time was spent"


@dataclass
class Halves:
    """A segment of a model that does not classify: `h0` is half of `x`; `sum` and `count` are made of `h0`."""

    index: int

    def run(self, tensors: Arrays, *, lent: bool = False) -> Arrays:
        del lent
        if self.index == 0:
            return {"h0": np.divide(tensors["x"][:, :3], 2, dtype=np.float32)}
        h0 = np.asarray(tensors["h0"], np.float32)
        return {"count": np.full((len(h0), 1), h0.shape[1], np.int32), "sum": h0.sum(axis=1, dtype=np.float32)[:, None]}


def test_a_model_that_does_not_classify_answers_with_all_its_results() -> None:
    parts = manifest_dict() | {"task": "tensors", "labels": []}
    first, last = parts["segments"][0], parts["segments"][2]
    results = [tensor_spec("sum", 1), tensor_spec("count", 1, dtype="int32")]
    first |= {"exit": None, "passes": []}
    last |= {"exit": None, "index": 1, "inputs": first["outputs"], "outputs": results}
    parts["segments"] = [first, last]
    parts["operating_points"] = [
        {"id": name, "placement": placement, "codec": "raw", "policies": []}
        for name, placement in (("default", ["edge", "fog"]), ("all-edge", ["edge", "edge"]))
    ]
    whole = Manifest.model_validate(parts)
    halves = [cast(RunningSegment, Halves(index)) for index in range(2)]
    edge, fog = Stage("edge", "ab" * 32, whole, 0, halves), Stage("fog", "ab" * 32, whole, 1, halves[1:])
    rows = [(2.0, 4.0, 6.0), (0.0, 0.0, 1.0)]
    sent = step(edge, [work(*row) for row in rows])
    assert [(o.next_segment, o.beliefs) for o in sent if isinstance(o, Offload)] == [(1, ()), (1, ())]
    above = step(fog, [unpack(o, whole) for o in sent if isinstance(o, Offload)])
    alone = step(edge, [work(*row, operating_point="all-edge") for row in rows])
    for answers, tier in ((above, "fog"), (alone, "edge")):
        for answer, row in zip(answers, rows, strict=True):
            assert isinstance(answer, Prediction) and decode(encode(answer)) == answer
            assert (answer.tier, answer.exit, answer.label, answer.confidence) == (tier, 0, -1, 1.0)
            assert (answer.status, answer.reason) == ("final", "last")
            assert np.frombuffer(answer.outputs, "<f4").tolist() == [sum(row) / 2, 3.0], "in the manifest's order"
