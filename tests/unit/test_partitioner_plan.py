"""The plan is exact, as walking every sample through every placement shows; it keeps its limits; it says who wins."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from partitioner.planning import search
from partitioner.planning.decide import _affordable
from partitioner.planning.handling import Handling, measure_handling, without_cuts
from partitioner.planning.link import Link, parse_link
from partitioner.planning.pareto import front, thin
from partitioner.planning.plan import OBJECTIVES, Choice, EarlyExit, Figures, Point, Scene, Wish, figures, plan
from partitioner.planning.verdict import ON_DEVICE, SPLIT, TO_CLOUD, TO_FOG, describe, front_rows, kind, verdict
from partitioner.promise.thresholds import NEVER, expected_harm
from sluice.wire.errors import PermanentError
from sluice.wire.names import TIERS, Tier

CODECS = ("raw", "int8", "coarse")
SIZES = {"raw": 900.0, "int8": 200.0, "coarse": 10.0}
WISH = Wish("latency", epsilon=0.05, delta=0.1, n_certify=2000, codecs=CODECS)


def scene(
    points: int = 5, at: Sequence[int] = (0, 2), n: int = 120, seed: int = 0, codecs: Sequence[str] = CODECS
) -> Scene:
    """A made-up model with exits at the points `at`; later exits are better, hard samples are hard for all."""
    random = np.random.default_rng(seed)
    speed = {"edge": 6.0, "fog": 1.0, "cloud": 0.2}
    made = []
    for i in range(points):
        last = i == points - 1
        known = [] if last else [c for c in codecs if (c, i) != ("int8", 1)]
        lossy: dict[str, Any] = {"int8": 0.005, "coarse": random.random(n // 2) < random.uniform(0, 4 / n)}
        made.append(
            Point(
                name="end" if last else f"p{i}" if i else "input",
                bytes={c: float(random.uniform(100, 4000) / (k + 1)) for k, c in enumerate(known)},
                loss={c: lossy[c] for c in known if c in lossy},
                encode_us={c: float(random.uniform(5, 50)) for c in known},
                decode_us={c: float(random.uniform(5, 50)) for c in known},
            )
        )
    trunk = random.uniform(50, 400, points - 1)
    hard = random.normal(0, 1, n)
    sure = [1 / (1 + np.exp(hard - k - random.normal(0, 0.5, n))) for k in range(len(at))]
    return Scene(
        points=made,
        trunk_us={tier: trunk * speed[tier] for tier in TIERS},
        trunk_macs=np.rint(trunk * 1000).astype(np.int64),
        exits=[
            EarlyExit(f"exit{k}", point, {tier: 30.0 * (k + 1) * speed[tier] for tier in TIERS}, 20_000)
            for k, point in enumerate(at)
        ],
        confidence=sure,
        harm=[*(random.random(n) > c**0.3 for c in sure), random.random(n) < 0.004],
        uplink=Link(1e6, 0.004),
        backhaul=Link(1e7, 0.001),
        header_bytes=200,
        answer_bytes=150,
        codec_scale=speed,
        handling=Handling(step=7.0, gate=3.0, pack=5.0, unpack=9.0),
    )


@pytest.fixture(autouse=True)
def plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """All thresholds go down side by side: this file is about the plan, whatever the path is."""

    def path(confidence: Any, harm: Any, cost: Any) -> list[tuple[float, ...]]:
        assert len(harm) == len(cost) == len(confidence) + 1
        steps = [np.quantile(c, np.linspace(1, 0, 4 + len(c) // 10)).tolist() for c in confidence]
        return [(NEVER,) * len(steps), *zip(*steps, strict=True)]

    monkeypatch.setattr(search, "greedy_path", path)


Segments = list[tuple[int | None, int | None, int]]
"""Step of the trunk, early exit, point where it ends."""


def segments_of(made: Scene, exits: Sequence[int]) -> Segments:
    """The model cut everywhere it can be."""
    segments: Segments = []
    for point in range(len(made.points)):
        here: list[int | None] = [k for k in exits if made.exits[k].at == point]
        if point:
            segments.append((point - 1, here.pop(0) if here else None, point))
        segments += [(None, k, point) for k in here]
    return segments


def walk(
    made: Scene, segments: Segments, placement: Sequence[Tier], thresholds: dict[int, float], codec: str
) -> list[float] | None:
    """[harm, latency µs, bytes, device µs], sample by sample; None if the codec cannot cross where it has to."""
    n = len(made.harm[-1])
    harmed, total = 0.0, np.zeros(3)
    harm = expected_harm(made.confidence, made.harm)
    crossings: dict[tuple[int, int], list[int]] = {}
    own, slow = made.handling, made.codec_scale
    for sample in range(n):
        tier: Tier = "edge"
        up, answer = 0.0, -1
        spent = device = slow["edge"] * (own.pack + (own.step if placement[0] == "edge" else 0.0))
        for number, (step, k, _) in enumerate(segments):
            to = placement[number]
            if to != tier:
                at = segments[number - 1][2] if number else 0
                point = made.points[at]
                if codec not in point.bytes:
                    return None
                crossings.setdefault((at, number), []).append(sample)
                size = point.bytes[codec] + made.header_bytes
                packing = point.encode_us[codec] * slow[tier]
                spent += packing + slow[to] * (point.decode_us[codec] + own.unpack + own.step + own.pack)
                if tier == "edge":
                    spent += 1e6 * made.uplink.time_s(size)
                    device += packing
                    up += size
                if to == "cloud":
                    spent += 1e6 * made.backhaul.time_s(size)
                tier = to
            work = 0.0 if step is None else float(made.trunk_us[tier][step])
            work += 0.0 if k is None else made.exits[k].head_us[tier] + own.gate * slow[tier]
            work += own.gate * slow[tier] if number == len(segments) - 1 else 0.0
            spent += work
            device += work if tier == "edge" else 0.0
            if k is not None and made.confidence[k][sample] >= thresholds[k]:
                answer = k
                break
        harmed += harm[answer][sample]
        if tier != "edge":
            spent += 1e6 * made.uplink.time_s(made.answer_bytes) + slow["edge"] * own.unpack
            device += slow["edge"] * own.unpack
        elif made.results_sent:
            up += made.answer_bytes
        if tier == "cloud":
            spent += 1e6 * made.backhaul.time_s(made.answer_bytes)
        total += [spent, up, device]
    lost = 0.0
    for (at, _), samples in crossings.items():
        loss = np.asarray(made.points[at].loss.get(codec, 0.0))
        known = [bool(loss[s]) for s in samples if s < len(loss)] if loss.ndim else []
        lost += sum(known) / len(loss) if loss.ndim else min(len(samples) / n, float(loss))
    return [min(1.0, harmed / n + lost), *(total / n)]


def everything(made: Scene, wish: Wish) -> NDArray[np.float64]:
    """Costs of all candidates, placed segment by segment, sample by sample."""
    costs = []
    for one in search.exit_sets(made, wish):
        segments = segments_of(made, one.exits)
        for ends in itertools.combinations_with_replacement(range(len(segments) + 1), 2):
            placement: list[Tier] = [TIERS[sum(i >= end for end in ends)] for i in range(len(segments))]
            for level, codec in itertools.product(one.levels.thresholds, wish.codecs):
                thresholds = dict(zip(one.exits, level, strict=True))
                found = walk(made, segments, placement, thresholds, codec)
                if found is not None:
                    costs.append(found)
    return np.array(costs)


def allowed_share(wish: Wish) -> float:
    """The largest share of harmed samples that the plan may hope with, by trying."""
    enough = max(k for k in range(wish.n_certify) if binom.cdf(k, wish.n_certify, wish.epsilon) <= wish.delta)
    shares = np.linspace(0, 1, 100_001)
    return float(shares[binom.cdf(enough, wish.n_certify, shares) >= 0.5].max())


def columns(choice: Choice) -> list[float]:
    told = choice.figures
    return [1 - told.agreement, told.latency_ms * 1000, told.bytes, told.device_us]


QUICK = (Link(2e8, 1e-5), Link(5e7, 5e-6))
"""Uplink and backhaul so quick that all three tiers pay off."""


def uneven(made: Scene, seed: int) -> Scene:
    """What codecs lose differs from point to point, and what is slow on one tier is quick on another."""
    random = np.random.default_rng(seed)
    points = [replace(p, loss={c: float(random.uniform(0, 0.1)) for c in p.bytes if c != "raw"}) for p in made.points]
    trunk = {tier: us * random.uniform(0.1, 1, len(us)) for tier, us in made.trunk_us.items()}
    return replace(made, points=points, trunk_us=trunk)


@pytest.mark.parametrize(
    ("at", "silent", "links", "codecs"),
    [
        ((0, 2), False, (), CODECS),
        ((0, 0), True, QUICK, ("coarse",)),
        ((1, 1), True, QUICK, CODECS[1:]),
        ((1,), False, QUICK, CODECS),
    ],
)
def test_no_candidate_beats_the_plan(
    at: tuple[int, ...], silent: bool, links: tuple[Link, ...], codecs: tuple[str, ...]
) -> None:
    """The search is exact: every sample walked through every placement finds nothing better, and the same front."""
    made = replace(scene(points=5 - len(at) // 2, at=at, n=24, seed=len(codecs)), results_sent=not silent)
    if links:
        made = uneven(replace(made, uplink=links[0], backhaul=links[1]), seed=8)
    wish = replace(WISH, epsilon=0.2, codecs=codecs)
    costs = everything(made, wish)
    within = costs[costs[:, 0] <= allowed_share(wish) + 1e-5]
    done = plan(made, wish)
    for objective, column in OBJECTIVES.items():
        others = [c for c in OBJECTIVES.values() if c != column]
        least = within[np.lexsort([*(within[:, c].round(6) for c in others[::-1]), within[:, column].round(6)])[0]]
        assert columns(done.by_objective[objective])[1:] == pytest.approx(least[1:])
    found, _ = search.search(made, search.exit_sets(made, wish), search.limits_of(made, wish), made.uplink)
    undominated = costs[front(costs.round(6))]
    shown = np.array([columns(choice) for choice in done.pareto])
    assert len(found.costs) == len(undominated)
    for rows, among in ((found.costs, undominated), (undominated, found.costs), (shown, undominated)):
        assert np.abs(rows[:, None] - among).max(axis=2).min(axis=1).max() < 1e-5


def test_figures_are_what_every_sample_simulated_gives() -> None:
    made = scene(points=6, at=(0, 2, 2), n=40)
    segments = segments_of(made, (0, 1, 2))
    random = np.random.default_rng(2)
    blank = plan(made, WISH).best
    for _ in range(60):
        ends = np.sort(random.integers(0, len(segments) + 1, 2))
        placement: list[Tier] = [TIERS[int((i >= ends).sum())] for i in range(len(segments))]
        tiers = tuple(placement[i] for i, (_, k, _) in enumerate(segments) if k is not None)
        points = [0, *(point for _, _, point in segments)]
        level = tuple(random.uniform(0.3, 1, 3).tolist())
        codec = CODECS[random.integers(3)]
        choice = replace(blank, exits=(0, 1, 2), exit_tiers=tiers, codec=codec, thresholds=level)
        choice = replace(choice, edge_end=points[ends[0]], fog_end=points[ends[1]])
        choice = replace(choice, figures=figures(made, choice))
        walked = walk(made, segments, placement, dict(enumerate(level)), codec)
        assert columns(choice) == pytest.approx(walked, abs=1e-6) if walked else np.isinf(choice.figures.latency_ms)
        trunk = [placement[i] for i, (step, _, _) in enumerate(segments) if step is not None]
        assert [choice.tier_at(point) for point in range(1, 6)] == trunk


def test_a_large_model_is_planned_as_well() -> None:
    """80 split points, 3 exits, 7 codecs: nothing that is tried at random is better than what was chosen."""
    codecs = ("raw", "zstd", "float16", "float16-zstd", "int8", "int8-zstd", "coarse")
    made = scene(points=81, at=(0, 20, 45), n=500, codecs=codecs)
    wish = replace(WISH, codecs=codecs)
    done = plan(made, wish)
    assert done.considered > 5_000_000
    least = min(choice.figures.agreement for choice in done.by_objective.values())
    random = np.random.default_rng(5)
    sets = search.exit_sets(made, wish)
    for _ in range(400):
        one = sets[random.integers(len(sets))]
        edge, fog = sorted(random.integers(1, 81, 2).tolist())
        tiers = tuple(TIERS[sum(made.exits[k].at > end for end in (edge, fog))] for k in one.exits)
        level = one.levels.thresholds[random.integers(len(one.levels.thresholds))]
        codec = codecs[random.integers(len(codecs))]
        tried = replace(done.best, exits=one.exits, exit_tiers=tiers, edge_end=edge, fog_end=fog, codec=codec)
        tried = replace(tried, thresholds=level)
        tried = replace(tried, figures=figures(made, tried))
        if tried.figures.agreement >= least:
            for objective, column in OBJECTIVES.items():
                assert columns(tried)[column] >= columns(done.by_objective[objective])[column] - 1e-6


def with_sizes(made: Scene, sizes: Sequence[float]) -> Scene:
    points = [replace(p, bytes={"raw": float(size)}, loss={}) for p, size in zip(made.points, sizes, strict=True)]
    return replace(made, points=points)


@pytest.mark.parametrize(
    ("uplink", "backhaul", "sizes", "winner", "says"),
    [
        ("10kbit/s,1s", "1Mbit/s,1s", [4000] * 5, ON_DEVICE, "Running all on the device"),
        ("10Gbit/s,0.001ms", "1kbit/s,1s", [4000] * 5, TO_FOG, "Sending the raw input to the fog"),
        ("10Gbit/s,0.001ms", "10Gbit/s,0.001ms", [4000] * 5, TO_CLOUD, "Sending the raw input to the cloud"),
        (
            "400kbit/s,0ms",
            "10kbit/s,1s",
            [400_000, 10, 9_000, 9_000, 0],
            SPLIT,
            "Best for latency is device up to 'p1'",
        ),
    ],
)
def test_who_wins_depends_on_the_links_and_the_verdict_says_so(
    uplink: str, backhaul: str, sizes: Sequence[float], winner: str, says: str
) -> None:
    made = with_sizes(scene(at=()), sizes)
    made = replace(made, uplink=parse_link(uplink), backhaul=parse_link(backhaul), header_bytes=0, answer_bytes=0)
    slow = 100.0 if winner == SPLIT else 1.0
    made = replace(made, trunk_us={**made.trunk_us, "edge": made.trunk_us["edge"] * np.array([1, slow, slow, slow])})
    done = plan(made, replace(WISH, codecs=("raw",)))
    assert kind(made, done.best) == winner
    said = verdict(made, "latency", done.best, done.baselines, done.split, done.least_agreement, fixed=False)
    assert said.startswith(says)
    assert list(done.baselines) == [ON_DEVICE, TO_FOG, TO_CLOUD]
    assert [kind(made, choice) for choice in done.baselines.values()] == [ON_DEVICE, TO_FOG, TO_CLOUD]
    assert winner == SPLIT or "the best split (device up to" in said
    for name, choice in done.baselines.items():
        assert choice.exits == ()
        assert choice.figures.latency_ms >= done.best.figures.latency_ms
        assert name in said
    assert "\n" not in said
    assert said.count(". ") == 0


def test_the_front_is_undominated_small_and_holds_what_was_chosen() -> None:
    made = scene(points=30, at=(0, 9), n=300)
    done = plan(made, WISH)
    costs = np.array([columns(choice) for choice in done.pareto])
    assert 20 < len(costs) <= 60
    assert len(front(costs)) == len(costs)
    assert all(choice in done.pareto for choice in done.by_objective.values())
    rows = front_rows(made, done)
    assert [row["name"] for row in rows if row["chosen"]] == [describe(made, done.best)]
    assert sum(row["baseline"] for row in rows) == 3


def test_front_and_thinning_of_many_ties() -> None:
    costs = np.random.default_rng(1).integers(0, 40, (400, 4)).astype(float)
    worse = [((costs <= row).all(axis=1) & (costs < row).any(axis=1)).any() for row in costs]
    first = [not (costs[:i] == row).all(axis=1).any() for i, row in enumerate(costs)]
    wanted = np.flatnonzero(~np.array(worse) & first)
    found = front(costs)
    assert sorted(found.tolist()) == wanted.tolist()
    few = thin(costs[found], [3], 10)
    assert len(few) == 10
    assert 3 in few
    assert costs[found][few].min(axis=0).tolist() == costs.min(axis=0).tolist()


def test_too_few_samples_to_certify_mean_no_early_exit_and_no_loss() -> None:
    made = uneven(scene(n=400), 1)
    made = replace(made, points=[replace(p, bytes=SIZES) for p in made.points])
    few = plan(made, replace(WISH, n_certify=20, edge_points=["p2"]))
    assert "20 samples cannot certify a harm of at most 0.05 at 0.9: 45 are needed at least" in few.no_promise
    for choice in few.by_objective.values():
        assert choice.exits == ()
        assert choice.codec == "raw"
    bad_end = replace(made, harm=[np.zeros(400, bool), np.zeros(400, bool), np.arange(400) % 10 == 0])
    kept = plan(bad_end, replace(WISH, n_certify=20, compulsory=(0, 1))).best
    assert kept.exits == (0, 1)
    assert kept.figures.exit_share == (0, 0, 1)
    assert plan(made, WISH).no_promise == ""


def test_a_handful_of_samples_without_harm_proves_little() -> None:
    """Of the same kind of samples, none of them harmed, 20 let fewer answer early than 2000 do."""
    shares = []
    for n in (20, 2000):
        made = scene(n=n, at=(1,))
        made = replace(made, harm=[np.zeros(n, bool)] * 2)
        done = plan(made, replace(WISH, epsilon=0.01, edge_points=["end"], compulsory=(0,)))
        shares.append(done.best.figures.exit_share[0])
    assert shares[0] < 0.9 < shares[1]


def test_a_codec_that_harms_too_much_is_not_chosen() -> None:
    """Codec coarse is by far the smallest here, but overturns every tenth answer."""
    made = scene(at=(), n=400)
    flips = np.arange(200) % 10 == 0
    points = [replace(p, bytes=SIZES, loss={"int8": 0.01, "coarse": flips}) for p in made.points]
    wish = replace(WISH, objective="bytes", fog_points=["end"], edge_points=["p2"])
    assert plan(replace(made, points=points), wish).best.codec == "int8"
    harmless = [replace(p, loss={}) for p in points]
    assert plan(replace(made, points=harmless), wish).best.codec == "coarse"


def test_a_loss_counts_only_for_those_that_cross() -> None:
    """Half of the samples exit before the cut; told of each sample, the codec's loss is that of the other half."""
    made = scene(points=3, at=(1,), n=100)
    half = np.arange(100) < 50
    flips = np.arange(100) % 10 == 0
    made = replace(made, confidence=[half.astype(float)], harm=[np.zeros(100, bool)] * 2)
    wish = replace(WISH, codecs=("coarse",), thresholds=(0.5,), edge_points=["p1"], epsilon=0.2)
    kept = []
    for loss in (0.0, flips, 0.1):
        points = [replace(p, loss={"coarse": loss}) for p in made.points]
        best = plan(replace(made, points=points), wish).best
        assert best.figures.exit_share == (0.5, 0.5)
        kept.append(best.figures.agreement)
    assert kept[0] - kept[1] == pytest.approx(0.05)
    assert kept[0] - kept[2] == pytest.approx(0.1)


def test_what_is_fixed_stays_fixed() -> None:
    made = scene(points=6, at=(0, 2), n=300)
    free = plan(made, WISH)
    wish = replace(WISH, edge_points=["p1"], fog_points=["p3"], compulsory=(1,), codecs=("int8", "raw"))
    done = plan(made, wish)
    for choice in (*done.by_objective.values(), *done.pareto):
        assert (choice.edge_end, choice.fog_end) == (1, 3)
        assert 1 in choice.exits
        assert choice.codec == "raw"  # int8 cannot cross at p1
    assert done.best.figures.latency_ms >= free.best.figures.latency_ms
    assert set(done.baselines) == {ON_DEVICE, TO_FOG, TO_CLOUD}
    above = plan(made, replace(WISH, exit_tiers={0: "fog"}, compulsory=(0,)))
    assert {c.exit_tiers[0] for c in above.pareto} == {"fog"}
    assert {c.edge_end for c in above.pareto} == {0}


def test_exits_at_the_input_may_run_on_any_tier() -> None:
    """Two of them: the first on a slow device, the second in the fog, and only what is left goes to the cloud."""
    made = scene(points=3, at=(0, 0), n=300)
    wish = replace(WISH, compulsory=(0, 1), exit_tiers={0: "edge", 1: "fog"}, fog_points=["input"])
    best = plan(made, wish).best
    assert (best.edge_end, best.fog_end, best.exit_tiers) == (0, 0, ("edge", "fog"))
    assert best.tier_at(1) == "cloud"
    assert "device up to the exit at the input, the next exit in the fog, then the cloud" in describe(made, best)


def test_fixed_thresholds_are_kept() -> None:
    made = scene(n=300)
    done = plan(made, replace(WISH, thresholds=(0.9, 0.6)))
    for choice in (*done.by_objective.values(), *done.pareto):
        assert choice.exits == (0, 1)
        assert choice.thresholds == (0.9, 0.6)


def test_a_model_without_exits_is_only_cut() -> None:
    made = replace(scene(at=()), harm=[np.zeros(50, bool)])
    done = plan(made, replace(WISH, n_certify=0, codecs=("raw",)))
    assert done.best.exits == ()
    assert done.best.figures.agreement == 1.0


def test_figures_at_another_link() -> None:
    made = scene(n=300)
    done = plan(made, replace(WISH, edge_points=["p1", "p2"]))
    for choice in (*done.by_objective.values(), *done.baselines.values()):
        assert figures(made, choice) == choice.figures
        slower = figures(made, choice, Link(made.uplink.rate_bps / 10, made.uplink.delay_s))
        crosses = kind(made, choice) != ON_DEVICE
        assert (slower.latency_ms > choice.figures.latency_ms) == crosses
        assert (slower.bytes, slower.device_us) == (choice.figures.bytes, choice.figures.device_us)


def test_figures_with_shares_that_are_known_better() -> None:
    """What exits answered on other samples is taken as it is; with the scene's own shares nothing changes."""
    made = scene(n=300)
    best = plan(made, replace(WISH, compulsory=(0, 1), edge_points=["p2"])).best
    assert figures(made, best, exit_share=best.figures.exit_share) == best.figures
    fewer = figures(made, best, exit_share=(0.0, 0.0, 1.0))
    assert fewer.exit_share == (0.0, 0.0, 1.0)
    assert fewer.latency_ms > best.figures.latency_ms
    assert fewer.agreement == best.figures.agreement


def test_what_surrounds_a_segment_is_measured_where_it_runs() -> None:
    seen = []
    handling = measure_handling(10, lambda: seen.append(1))
    assert 0 < handling.gate < 1000
    assert min(handling.step, handling.pack, handling.unpack) > 1
    assert len(seen) > 20
    assert measure_handling(0).gate == 0.0


def test_what_fine_segments_take_longer_than_the_whole_is_the_cuts() -> None:
    us = np.array([30.0, 20.0, 50.0])
    trunk, cuts = without_cuts(us, 80.0, np.array([60_000.0, 0.0]))
    assert cuts.tolist() == [16.0, 4.0]
    assert trunk.tolist() == [22.0, 10.0, 48.0]
    trunk, cuts = without_cuts(us, 120.0, np.array([60_000.0, 0.0]))
    assert cuts.tolist() == [0.0, 0.0]
    assert trunk.tolist() == (us * 1.2).tolist()
    assert without_cuts(us[:1], 25.0, np.zeros(0))[0].tolist() == [25.0]


def test_silent_devices_send_no_results() -> None:
    made = scene(n=100)
    loud = plan(made, WISH).baselines[ON_DEVICE].figures.bytes
    silent = plan(replace(made, results_sent=False), WISH).baselines[ON_DEVICE].figures.bytes
    assert (loud, silent) == (made.answer_bytes, 0.0)


def test_unknown_points_and_nothing_left_are_said_in_a_line() -> None:
    made = scene(points=4)
    with pytest.raises(PermanentError, match="no point 'p22' to cut at; the nearest name is 'p2'"):
        plan(made, replace(WISH, edge_points=["p22"]))
    with pytest.raises(PermanentError, match="nothing is left to choose"):
        plan(made, replace(WISH, edge_points=["p1"], codecs=("int8",)))


@pytest.mark.parametrize(
    ("text", "rate_bps", "delay_s"),
    [
        ("1Mbit/s,50ms", 1e6, 0.05),
        ("250kbit/s", 250e3, 0),
        ("10Mbit/s, 20ms", 10e6, 0.02),
        ("56k", 56e3, 0),
        ("100kB/s,1s", 800e3, 1),
        ("1.5 Gbps,100us", 1.5e9, 1e-4),
        ("9600,0.2s", 9600, 0.2),
    ],
)
def test_links_as_people_write_them(text: str, rate_bps: float, delay_s: float) -> None:
    link = parse_link(text)
    assert (link.rate_bps, link.delay_s) == pytest.approx((rate_bps, delay_s))
    assert parse_link(str(link)).time_s(1000) == pytest.approx(link.time_s(1000))
    assert link.time_s(1000) == pytest.approx(delay_s + 8000 / rate_bps)


@pytest.mark.parametrize(
    "text", ["", "fast", "1Mbit/s,", "0kbit/s", "-1k", "1Mbit/s,50", "1Mbit/s,50ms,3", "1e999k", "1k,1e999s", "nan"]
)
def test_what_is_no_link_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(PermanentError, match="link") as caught:
        parse_link(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", range(37))
def test_where_nothing_may_be_hoped_for_it_falls_back(bad: int) -> None:
    """However much the final exit itself harms, as int8 may."""
    ends = [Point(name, {"raw": 1000.0}, {"raw": 0.0}, {"raw": 1.0}, {"raw": 1.0}) for name in ("in", "mid", "end")]
    harm = np.arange(37) < bad
    trunk = {tier: np.array([10.0, 10.0]) for tier in TIERS}
    links = Link(1e6, 0.05), Link(1e8, 0.01)
    made = Scene(ends, trunk, np.array([5, 5]), [], [], [harm], *links, header_bytes=250, answer_bytes=190)
    found = plan(made, Wish("latency", 0.01, 0.05, n_certify=20, codecs=["raw"]))
    assert found.best.exits == () and "20 samples cannot certify" in found.no_promise


def test_new_groups_need_enough_groups() -> None:
    few = plan(scene(), replace(WISH, groups=20))
    assert "20 groups cannot certify" in few.no_promise and few.best.figures.exit_share[-1] == 1.0
    many = plan(scene(), replace(WISH, groups=2000))
    assert not many.no_promise and many.best.figures.exit_share[-1] < 1.0


def test_what_is_known_to_be_in_vain_is_not_hoped_for() -> None:
    found = plan(scene(), replace(WISH, given_up="it failed"))
    assert found.no_promise == "it failed" and found.best.figures.exit_share[-1] == 1.0


def test_of_many_exits_none_is_always_possible() -> None:
    many = scene(points=8, at=(0, 1, 2, 3, 4, 5))
    sets = [one.exits for one in search.exit_sets(many, WISH)]
    assert () in sets and tuple(range(6)) in sets and (1, 4) in sets and len(set(sets)) == len(sets) == 1 + 6 + 15 + 1
    found = plan(many, WISH)
    assert all(found.best.figures.latency_ms <= one.figures.latency_ms for one in found.baselines.values())


def test_alternatives_go_before_the_promise_does() -> None:
    harmless = Choice((0,), ("edge",), 1, 2, "raw", (0.5,), Figures(1.0, 1.0, 1.0, 1.0, (0.5, 0.5)))
    wish = replace(WISH, epsilon=0.05, delta=0.05)
    others = {"fewest-bytes": harmless, "lowest-latency": harmless}
    assert list(_affordable(replace(wish, n_certify=58), harmless, others)) == []  # 59 do for one
    assert list(_affordable(replace(wish, n_certify=73), harmless, others)) == ["fewest-bytes"]  # 72 for two
    assert list(_affordable(replace(wish, n_certify=80), harmless, others)) == list(others)  # 80 for three
