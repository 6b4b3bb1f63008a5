"""Heterogeneous runs, logs of events, groups and budgets in steps, each against an independent computation."""

import json
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from dp_accounting.pld import privacy_loss_distribution
from scipy import stats

from tfprivacy_lab.checks import InputError
from tfprivacy_lab.dp.accounting import adjacency, composition, events, phases
from tfprivacy_lab.dp.accounting.budget import steps_within
from tfprivacy_lab.dp.accounting.composition import compose, compose_parallel, epsilon_shuffled
from tfprivacy_lab.dp.accounting.gaussian import DpSgdRun, account, epsilon_after
from tfprivacy_lab.dp.accounting.group import group_epsilon, group_epsilon_gaussian, group_epsilon_sampled

TUTORIAL = DpSgdRun(60_000, 256, 1.1, 14_063)
SECOND = DpSgdRun(60_000, 2048, 3.0, 300)
LAPLACE = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.LaplaceDpEvent(2.0))
OTHERS = [dp_accounting.LaplaceDpEvent(5.0), LAPLACE, dp_accounting.GaussianDpEvent(4.0)]
TRUNCATED = getattr(dp_accounting.dp_event, "TruncatedSubsampledGaussianDpEvent", None)


def rebuild(node):
    """A reader of the log that knows dp_accounting and nothing of this package."""
    fields = {name: value for name, value in node.items() if name != "type"}
    if "event" in fields:
        fields["event"] = rebuild(fields["event"])
    if "events" in fields:
        fields["events"] = [rebuild(child) for child in fields["events"]]
    return getattr(dp_accounting.dp_event, node["type"])(**fields)


def test_a_log_can_be_accounted_by_anyone(tmp_path):
    """Acceptance: from the file alone, with dp_accounting alone, the same ε."""
    parts = [TUTORIAL.event(), SECOND.event(), *OTHERS]
    events.write_events(tmp_path / "events.json", parts)
    accountant = pld.PLDAccountant()
    for node in json.loads((tmp_path / "events.json").read_text())["events"]:
        accountant.compose(rebuild(node))
    figures = compose(TUTORIAL, SECOND, *OTHERS, delta=1e-5)
    assert figures["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    assert events.read_events(tmp_path / "events.json") == parts


def test_one_run_composed_is_the_run():
    figures = compose(TUTORIAL, delta=1e-5)
    assert figures["epsilon"] == epsilon_after(TUTORIAL, TUTORIAL.steps, 1e-5)
    assert figures["epsilon_rdp"] == account(TUTORIAL, 1e-5)["epsilon_rdp"]
    assert figures["epsilon_pure"] is None


def test_parts_of_small_delta_cost_no_less_together_than_one_alone():
    """Rounding errors of a transform are no probabilities: 5.226 was stated for both, the first alone costs 5.549."""
    first, second = DpSgdRun(60_000, 60, 0.7, 20_000), DpSgdRun(60_000, 256, 1.1, 3_000)
    whole = compose(first, second, delta=3e-14)["epsilon"]
    assert max(compose(part, delta=3e-14)["epsilon"] for part in (first, second)) < whole < 6.0


def test_phases_of_one_run_are_the_run_whatever_their_order():
    first, second = (DpSgdRun(60_000, 256, 1.1, steps) for steps in (4_063, 10_000))
    assert compose(first, second, delta=1e-5)["epsilon"] == compose(TUTORIAL, delta=1e-5)["epsilon"]
    one, other = (compose(*parts, delta=1e-5)["epsilon"] for parts in ((TUTORIAL, SECOND), (SECOND, TUTORIAL)))
    assert one == other


def test_gaussians_of_different_noise_are_one_gaussian():
    """σ^-2 adds up: exact (Balle and Wang 2018, Thm 8), here by Φ."""
    sigmas, delta = (3.0, 4.0, 6.0, 6.0), 1e-6
    epsilon = compose(*map(dp_accounting.GaussianDpEvent, sigmas), delta=delta)["epsilon"]
    sigma = sum(s**-2 for s in sigmas) ** -0.5
    assert gaussian_delta(epsilon, sigma) == pytest.approx(delta, rel=2e-3)
    assert gaussian_delta(epsilon, sigma) <= delta * (1 + 1e-6)


def gaussian_delta(epsilon, sigma):
    return stats.norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * stats.norm.cdf(
        -0.5 / sigma - epsilon * sigma
    )


def test_two_different_sampled_steps_by_brute_force():
    """δ(ε) of two steps of different q and σ, by summing the hockey-stick over a plane of outputs."""
    parts = [DpSgdRun(100, 10, 0.9, 1), DpSgdRun(100, 40, 2.0, 1)]
    epsilon = compose(*parts, delta=1e-3)["epsilon"]
    axes = [np.linspace(-9 * run.noise_multiplier, 1 + 9 * run.noise_multiplier, 1501) for run in parts]
    without = [stats.norm.pdf(x, 0, run.noise_multiplier) for x, run in zip(axes, parts, strict=True)]
    sampled = [run.sampling_probability for run in parts]
    ones = [stats.norm.pdf(x, 1, run.noise_multiplier) for x, run in zip(axes, parts, strict=True)]
    with_one = [(1 - q) * zero + q * one for q, zero, one in zip(sampled, without, ones, strict=True)]
    cell = np.prod([x[1] - x[0] for x in axes])
    planes = np.outer(*with_one), np.outer(*without)
    deltas = [np.maximum(a - math.exp(epsilon) * b, 0).sum() * cell for a, b in (planes, planes[::-1])]
    assert max(deltas) == pytest.approx(1e-3, rel=2e-3)
    assert max(deltas) <= 1e-3 * (1 + 1e-4)


def test_gaussians_under_one_sample_are_one_gaussian():
    """A clipped sum and a count on the same Poisson sample, as adaptive clipping releases them."""
    both = dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(1.5), dp_accounting.GaussianDpEvent(2.0)])
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(0.01, both), 500)
    effective = (1.5**-2 + 2.0**-2) ** -0.5
    figures = compose(event, delta=1e-5)
    assert figures["epsilon"] == pytest.approx(epsilon_after(DpSgdRun(100, 1, effective, 500), 500, 1e-5), rel=1e-9)
    assert figures["epsilon_rdp"] > figures["epsilon"]
    mixed = dp_accounting.ComposedDpEvent([dp_accounting.GaussianDpEvent(1.5), dp_accounting.LaplaceDpEvent(2.0)])
    with pytest.raises(InputError, match="Laplace"):
        compose(dp_accounting.PoissonSampledDpEvent(0.01, mixed), delta=1e-5)


def test_pure_epsilon_of_laplace_noise():
    """At tiny δ the PLD comes to the pure bound from below; amplification is log(1 + q(e^{1/b} - 1))."""
    event = dp_accounting.SelfComposedDpEvent(LAPLACE, 3)
    pure = composition.pure_epsilon(event)
    assert pure == pytest.approx(3 * math.log(1 + 0.1 * (math.exp(0.5) - 1)))
    assert composition.epsilon_of(event, 1e-9) == pytest.approx(pure, abs=3e-4)
    assert composition.epsilon_of(event, 1e-3) < pure


def test_parallel_is_the_dearest_part():
    figures = compose_parallel(TUTORIAL, SECOND, delta=1e-5)
    each = [compose(run, delta=1e-5)["epsilon"] for run in (TUTORIAL, SECOND)]
    assert figures["epsilon"] == max(each) < compose(TUTORIAL, SECOND, delta=1e-5)["epsilon"]
    assert figures["assumption"] == composition.PARALLEL != compose(TUTORIAL, delta=1e-5)["assumption"]
    assert len(figures["events"]) == 2


@pytest.mark.parametrize(
    ("run", "epsilon"),
    [(TUTORIAL, 2.0), (SECOND, 0.5), (DpSgdRun(1000, 1000, 50.0, 1), 1.0), (DpSgdRun(60_000, 256, 100.0, 1), 0.001)],
)
def test_steps_within_is_the_last_that_fits(run, epsilon):
    steps = steps_within(run, epsilon, 1e-5)
    assert epsilon_after(run, steps, 1e-5) <= epsilon < epsilon_after(run, steps + 1, 1e-5)
    assert steps_within(run, epsilon, 1e-5, at_most=steps - 3) == steps - 3
    assert steps_within(run, epsilon, 1e-5, at_most=steps + 3) == steps


def test_millions_of_narrow_steps_are_counted():
    """As on a grid a tenth of the usual one; and a search that looks at 10^8 ends."""
    run = DpSgdRun(60_000, 600, 20.0, 10**6)
    step = privacy_loss_distribution.from_gaussian_mechanism(
        20.0, sampling_prob=0.01, value_discretization_interval=1e-5
    )
    at_once = step.self_compose(150_000).get_epsilon_for_delta(1e-5)
    assert epsilon_after(run, 150_000, 1e-5) == pytest.approx(at_once, rel=1e-4)
    steps = steps_within(run, 8.0, 1e-5, at_most=10**8)
    assert epsilon_after(run, steps, 1e-5) <= 8.0 < epsilon_after(run, steps + 100, 1e-5)
    # Phase by phase, as training counts them: no further than asked, and the same beyond what was done before.
    begun = [phases.Phase(60_000, 600, 20.0, "poisson", 0)]
    assert phases.further_steps_within(begun, 8.0, 1e-5, 10**8) == steps
    assert phases.further_steps_within(begun, 8.0, 1e-5, 2000) == 2000
    assert phases.further_steps_within(phases.extended(begun, 10**6), 8.0, 1e-5, 10**8) == steps - 10**6
    assert phases.further_steps_within(phases.extended(begun, steps + 100), 8.0, 1e-5, 10) == -1


def test_no_step_fits_a_tiny_budget():
    assert steps_within(TUTORIAL, 0.01, 1e-9) == 0
    assert steps_within(TUTORIAL, 5.0, 1e-5, at_most=0) == 0
    assert steps_within(TUTORIAL, epsilon_after(TUTORIAL, 1, 1e-5), 1e-5) == 1


def test_shuffled_batches_get_no_amplification():
    """Sixty passes of σ = 1.1 are one Gaussian of 1.1/√60; replacing a record doubles the sensitivity."""
    epsilon = epsilon_shuffled(TUTORIAL, 1e-5)
    assert epsilon == account(TUTORIAL, 1e-5)["epsilon_no_amplification_exact"]
    assert gaussian_delta(epsilon, 1.1 / math.sqrt(60)) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon_shuffled(TUTORIAL, 1e-5, adjacency="zero_out_one") == epsilon  # its former name
    replaced = epsilon_shuffled(TUTORIAL, 1e-5, adjacency="replace_one")
    assert gaussian_delta(replaced, 0.55 / math.sqrt(60)) == pytest.approx(1e-5, rel=1e-6)
    assert account(TUTORIAL, 1e-5)["epsilon_no_amplification_adjacency"] == "zero_out"
    # As a phase of training it is the same figure, and says for which neighbours, by the same name as training.
    phase = phases.Phase(60_000, 256, 1.1, "shuffled", TUTORIAL.steps)
    figures = compose(phase.event(), delta=1e-5)
    assert figures["epsilon"] == pytest.approx(epsilon, rel=1e-4)
    assert figures["adjacency"] == "zero_out"
    # 10 records in batches of 4: three batches a pass, or two if the last is dropped.
    small = DpSgdRun(10, 4, 5.0, 6)
    assert gaussian_delta(epsilon_shuffled(small, 1e-5), 5 / math.sqrt(2)) == pytest.approx(1e-5, rel=1e-6)
    dropped = epsilon_shuffled(small, 1e-5, drop_remainder=True)
    assert gaussian_delta(dropped, 5 / math.sqrt(3)) == pytest.approx(1e-5, rel=1e-6)
    with pytest.raises(InputError, match="adjacency"):
        epsilon_shuffled(TUTORIAL, 1e-5, adjacency="add_or_remove_one")


def test_group_by_conversion_of_a_known_curve():
    """Randomised response is one point: Laplace at δ → 0 is pure, so k records cost k·ε."""
    event = dp_accounting.LaplaceDpEvent(2.0)
    assert group_epsilon(event, 3, 1e-9) == pytest.approx(1.5, abs=1e-3)
    assert group_epsilon(event, 1, 1e-9) == composition.epsilon_of(event, 1e-9)


@pytest.mark.parametrize("size", [2, 3])
def test_group_by_conversion_keeps_to_delta_and_is_optimised(size):
    """Every point of the exact Gaussian curve on a fine grid, converted; the least that keeps to δ."""
    sigma, delta = 4.0, 1e-5
    grid = np.linspace(1e-4, 3, 200_001)
    converted = np.array(gaussian_delta_of(grid, sigma)) * np.expm1(size * grid) / np.expm1(grid)
    least = size * grid[np.flatnonzero(converted <= delta)[0]]
    found = group_epsilon(dp_accounting.GaussianDpEvent(sigma), size, delta)
    assert found == pytest.approx(least, rel=2e-3)
    assert found >= least * (1 - 1e-4)
    assert group_epsilon_gaussian(sigma, 1, size, delta) < found


def gaussian_delta_of(epsilons, sigma):
    first, second = (stats.norm.cdf(s * 0.5 / sigma - epsilons * sigma) for s in (1, -1))
    return first - np.exp(epsilons) * second


def test_group_of_the_gaussian_is_exact():
    epsilon = group_epsilon_gaussian(8.0, 4, 3, 1e-6)
    assert gaussian_delta(epsilon, 8.0 / (3 * 2)) == pytest.approx(1e-6, rel=1e-6)


def test_group_under_sampling_by_brute_force():
    """Three records join one step: Binomial(3, q) of them shift the sum; the hockey-stick by quadrature."""
    run = DpSgdRun(100, 20, 4.0, 1)
    epsilon = group_epsilon_sampled(run, 3, 1e-3)
    x = np.linspace(-48, 51, 200_001)
    weights = [math.comb(3, j) * 0.2**j * 0.8 ** (3 - j) for j in range(4)]
    joined, without = sum(w * stats.norm.pdf(x, j, 4) for j, w in enumerate(weights)), stats.norm.pdf(x, 0, 4)
    both = (joined, without), (without, joined)
    deltas = [np.maximum(a - math.exp(epsilon) * b, 0).sum() * (x[1] - x[0]) for a, b in both]
    assert max(deltas) == pytest.approx(1e-3, rel=5e-3)
    assert max(deltas) <= 1e-3 * (1 + 1e-4)
    assert epsilon < group_epsilon(run, 3, 1e-3)
    assert group_epsilon_sampled(run, 1, 1e-3) == epsilon_after(run, 1, 1e-3)


@pytest.mark.skipif(TRUNCATED is None, reason="needs dp-accounting 0.6")
def test_truncated_batches_are_logged_and_accounted(tmp_path):
    step = TRUNCATED(1000, 0.05, 70, 1.5)
    events.write_events(tmp_path / "log", [dp_accounting.SelfComposedDpEvent(step, 40)])
    (event,) = events.read_events(tmp_path / "log")
    ours = composition.epsilon_of(event, 1e-5)
    # Their masses are differences of distribution functions: what these may be wrong by is added.
    theirs = pld.PLDAccountant().compose(event).get_epsilon(1e-5)
    assert theirs < ours < theirs * (1 + 1e-8)
    # Cutting batches at 70 of 50 expected costs something; cutting at 1000 never happens.
    assert ours > epsilon_after(DpSgdRun(1000, 50, 1.5, 40), 40, 1e-5)
    never = dp_accounting.SelfComposedDpEvent(TRUNCATED(1000, 0.05, 1000, 1.5), 40)
    assert composition.epsilon_of(never, 1e-5) == pytest.approx(
        epsilon_after(DpSgdRun(1000, 50, 1.5, 40), 40, 1e-5), rel=1e-6
    )


@pytest.mark.skipif(TRUNCATED is not None, reason="only with dp-accounting before 0.6")
def test_events_of_newer_versions_are_refused_by_name():
    node = {"type": "TruncatedSubsampledGaussianDpEvent", "dataset_size": 10, "sampling_probability": 0.5}
    with pytest.raises(InputError, match=r"dp-accounting 0\.6"):
        events.from_json(node | {"truncated_batch_size": 7, "noise_multiplier": 1.0})


def test_events_of_different_adjacency_are_not_mixed(tmp_path):
    """A shuffled phase stands in logs and sums as what it is, never as add-or-remove."""
    shuffled = phases.Phase(100, 10, 2.0, "shuffled", 30).event()
    sampled = phases.Phase(100, 10, 2.0, "poisson", 30).event()
    assert compose(sampled, delta=1e-5)["adjacency"] == "add_or_remove_one"
    events.write_events(tmp_path / "log", [shuffled, shuffled])
    log = json.loads((tmp_path / "log").read_text())
    assert (log["adjacency"], log["events"]) == ("zero_out", [events.to_json(adjacency.plain(shuffled))] * 2)
    assert events.read_events(tmp_path / "log") == [shuffled, shuffled]
    # As it was called before.
    (tmp_path / "old").write_text((tmp_path / "log").read_text().replace('"zero_out"', '"zero_out_one"'))
    assert events.read_events(tmp_path / "old") == [shuffled, shuffled]
    events.write_events(tmp_path / "sampled", [sampled])
    assert events.read_events(tmp_path / "sampled") == [sampled]
    mixed = "add_or_remove_one and zero_out"
    with pytest.raises(InputError, match=mixed):
        events.write_events(tmp_path / "mixed", [sampled, shuffled])
    for together in (compose, compose_parallel):
        with pytest.raises(InputError, match=mixed):
            together(sampled, shuffled, delta=1e-5)
    with pytest.raises(InputError, match="zero_out"):
        composition.epsilon_of(dp_accounting.ComposedDpEvent([sampled, shuffled]), 1e-5)
    with pytest.raises(dp_accounting.UnsupportedEventError):
        pld.PLDAccountant().compose(shuffled)


def test_many_events_are_a_multiset():
    """More than any one tree may hold: what counts is how often each mechanism is used."""
    step = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(400.0), 2)
    figures = compose(*[step] * 12_000, delta=1e-5)
    one = compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(400.0), 24_000), delta=1e-5)
    assert figures["epsilon"] == one["epsilon"]
    assert figures["epsilon_rdp"] == pytest.approx(one["epsilon_rdp"], rel=1e-9)


GOOD = events.to_json(TUTORIAL.event())


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [],
        {},
        {"type": "NonPrivateDpEvent"},
        {"type": ["GaussianDpEvent"]},
        {"type": "__import__"},
        {"type": "GaussianDpEvent"},
        {"type": "GaussianDpEvent", "noise_multiplier": 1.0, "note": 1},
        {"type": "GaussianDpEvent", "noise_multiplier": 0.0},
        {"type": "GaussianDpEvent", "noise_multiplier": math.nan},
        {"type": "GaussianDpEvent", "noise_multiplier": "1.0"},
        {"type": "LaplaceDpEvent", "noise_multiplier": True},
        GOOD | {"count": 0},
        GOOD | {"count": 2.5},
        GOOD | {"count": 10**9},
        GOOD | {"event": GOOD["event"] | {"sampling_probability": 1.01}},
        GOOD | {"event": GOOD["event"] | {"event": GOOD["event"]}},
        {"type": "ComposedDpEvent", "events": []},
        {"type": "ComposedDpEvent", "events": [GOOD] * 5_000},
    ],
)
def test_events_that_are_none_are_refused(tree):
    with pytest.raises(InputError):
        events.from_json(tree)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"format": "tfprivacy_lab event log 1", "adjacency": "add_or_remove_one", "events": []}',
        b'{"format": "tfprivacy_lab event log 1", "adjacency": "replace_one", "events": [{}]}',
        b'{"format": "x", "format": "y"}',
        b'{"format": "tfprivacy_lab event log 1", "adjacency": "add_or_remove_one", '
        b'"events": [{"type": "GaussianDpEvent", "noise_multiplier": NaN}]}',
    ],
)
def test_damaged_logs_are_refused_by_name(tmp_path, content):
    path = tmp_path / "log.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"event log .*log\.json"):
        events.read_events(path)


def test_truncated_logs_are_refused(tmp_path):
    path = tmp_path / "log.json"
    events.write_events(path, [TUTORIAL.event(), *OTHERS])
    content = path.read_bytes()
    for size in range(0, len(content) - 2, 97):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match="event log"):
            events.read_events(path)


def test_json_is_canonical_and_exact():
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(np.float64(0.1) + 0.2), np.int64(7))
    assert events.loads(events.dumps(event)) == dp_accounting.SelfComposedDpEvent(
        dp_accounting.GaussianDpEvent(0.30000000000000004), 7
    )
    assert events.dumps(dp_accounting.GaussianDpEvent(2)) == events.dumps(dp_accounting.GaussianDpEvent(2.0))


def test_nothing_too_large_is_computed():
    with pytest.raises(InputError, match="beyond 2000"):
        compose(DpSgdRun(100, 50, 0.2, 10**6), delta=1e-5)
    with pytest.raises(InputError, match="noise_multiplier"):
        compose(dp_accounting.GaussianDpEvent(0.05), delta=1e-5)


def test_empty_and_wrong_arguments_are_refused():
    for wrong in (lambda: compose(delta=1e-5), lambda: compose_parallel(delta=1e-5), lambda: compose("x", delta=1e-5)):
        with pytest.raises(InputError, match="event"):
            wrong()
    with pytest.raises(InputError, match="delta"):
        compose(TUTORIAL, delta=0)
    for size in (0, 1.5, True):
        with pytest.raises(InputError, match="size"):
            group_epsilon(TUTORIAL, size, 1e-5)
    with pytest.raises(InputError, match="epsilon"):
        steps_within(TUTORIAL, math.nan, 1e-5)
