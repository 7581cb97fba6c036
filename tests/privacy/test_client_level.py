"""Whole clients: the clip holds for any update, the noise has the std of theory, the clip finds its quantile."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from fedq.privacy import (
    ClientLevelMechanism,
    ClientLevelPlan,
    Declined,
    Ledger,
    LedgerError,
    Mechanism,
    SecureRandom,
    SeededRandom,
    clipped,
    epsilon,
)
from fedq.privacy.client_level import l2_norm, sum_multiplier

GRID = 2.0**32
PLAN = ClientLevelPlan(noise_multiplier=2.0, clip_norm=0.5, cohort=10, clients=50, charges=6)
ADAPTIVE = replace(PLAN, quantile=0.5)


def mechanism(folder, plan=PLAN, *, random=None):
    ledger, evidence = folder / "ledger.sqlite", folder / "evidence.jsonl"
    return ClientLevelMechanism(
        plan, ledger=ledger, evidence=evidence, random=random or SecureRandom(), data="digits", run="run"
    )


def released(noising, steps, *, round=1, counted=0, within=0):
    clip_norm = noising.clip_norm if counted else None
    return noising.release(steps, grid=GRID, round=round, clip_norm=clip_norm, counted=counted, within=within)


def squared_steps(update):
    """Exactly, in units of 2^-64, what the accumulator's grid makes of it."""
    steps = np.rint(update.astype(np.float64) * GRID).astype(np.int64)
    return sum(int(step) ** 2 for step in steps)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 0.999, 1.0, 1.001, 7.0, 1e6, 3e38])
@pytest.mark.parametrize("clip_norm", [1e-4, 0.3, 1000.0])
def test_no_update_is_longer_than_the_clip_on_the_accumulator_s_grid(scale, clip_norm):
    drawn = np.random.default_rng(0).normal(size=10_000)
    update = (drawn / np.linalg.norm(drawn) * min(clip_norm * scale, 3e38)).astype(np.float32)
    assert squared_steps(clipped(update, clip_norm)[0]) <= int(clip_norm * 2**32) ** 2


def test_an_update_of_the_largest_float32_is_clipped_and_finite():
    update = np.full(1000, np.finfo(np.float32).max)
    short, within = clipped(update, 1.0)
    assert not within
    assert np.isfinite(short).all()
    assert l2_norm(short) == pytest.approx(1.0, rel=1e-5)


def test_an_update_within_the_clip_stays_as_it_is_and_a_longer_one_keeps_its_direction():
    update = np.array([3.0, 4.0], np.float32)
    assert clipped(update, 5.1) == (update, True)
    short, within = clipped(update, 1.0)
    assert not within
    np.testing.assert_allclose(short, [0.6, 0.8], rtol=2e-6)


def test_two_sums_that_differ_in_one_client_differ_by_at_most_the_clip_and_nothing_else_differs():
    rng = np.random.default_rng(1)
    updates = [clipped(rng.normal(scale=s, size=500).astype(np.float32), 0.5)[0] for s in (0.001, 0.1, 9.0)]
    steps = [np.rint(u.astype(np.float64) * GRID).astype(np.int64) for u in updates]
    for out in range(3):
        neighbour = sum(s for i, s in enumerate(steps) if i != out)
        difference = sum(steps) - neighbour
        assert sum(int(d) ** 2 for d in difference) <= (2**31) ** 2  # 0.5 in steps


def test_noise_has_the_std_of_theory_over_the_public_cohort(tmp_path):
    n = 200_000
    noise = released(mechanism(tmp_path), np.zeros(n, np.int64)).astype(np.float64)
    std = 2.0 * 0.5 / 10
    assert abs(noise.mean()) < 5 * std / math.sqrt(n)
    assert abs(noise.var() / std**2 - 1) < 5 * math.sqrt(2 / n)


def test_the_mean_is_the_sum_over_the_public_cohort_whatever_came_back(tmp_path):
    """The same noise twice, so that their difference is the sum alone: 3 replies, divided by 10."""
    steps = (np.arange(1000) * 2**30).astype(np.int64)
    with_sum = released(mechanism(tmp_path / "a", random=SeededRandom(1)), steps, counted=3, within=3)
    without = released(mechanism(tmp_path / "b", random=SeededRandom(1)), np.zeros_like(steps))
    np.testing.assert_allclose(with_sum - without, np.arange(1000) / 4 / 10, rtol=1e-6, atol=1e-6)


def test_a_round_without_replies_gets_all_the_noise_and_costs_the_same(tmp_path):
    noising = mechanism(tmp_path)
    assert released(noising, np.zeros(100_000, np.int64)).std() == pytest.approx(0.1, rel=0.02)
    (row,) = Ledger(tmp_path / "ledger.sqlite").rows()
    assert (row.spend.noise_multiplier, row.spend.clip_norm, row.spend.sample_rate, row.spend.steps) == (2, 0.5, 1, 1)
    assert (row.spend.unit, row.spend.adjacency) == ("client", "zero-out-one")


def test_the_spend_is_on_disk_before_any_noise_is_drawn(tmp_path):
    class Watching(SecureRandom):
        def _words(self, count):
            seen.add(len(Ledger(tmp_path / "ledger.sqlite").rows()))
            return super()._words(count)

    seen = set()
    released(mechanism(tmp_path, random=Watching()), np.zeros(5, np.int64))
    assert seen == {1}


def test_nothing_is_drawn_where_the_spend_cannot_be_written(tmp_path):
    noising = mechanism(tmp_path)
    (tmp_path / "ledger.sqlite").write_bytes(b"damaged")
    with pytest.raises(LedgerError, match="not a complete ledger"):
        released(noising, np.zeros(5, np.int64))
    assert not (tmp_path / "evidence.jsonl").exists()


def test_updates_that_were_clipped_to_another_norm_are_refused_before_anything_is_spent(tmp_path):
    noising = mechanism(tmp_path)
    with pytest.raises(RuntimeError, match=r"clipped to 0\.75, the noise is for 0\.5"):
        noising.release(np.zeros(5, np.int64), grid=GRID, round=1, clip_norm=0.75, counted=2, within=2)
    assert Ledger(tmp_path / "ledger.sqlite").rows() == []


def test_rounds_compose_as_a_gaussian_mechanism_of_less_noise(tmp_path):
    """T releases at z are one at z / sqrt(T), whose delta(epsilon) is known in closed form (Balle & Wang 2018)."""
    spent, mu = PLAN.epsilon(6), math.sqrt(6) / 2.0

    def normal_cdf(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    def delta(epsilon):
        return normal_cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal_cdf(-mu / 2 - epsilon / mu)

    assert delta(spent) <= 1e-5
    assert delta(spent * 0.99) > 1e-5


def test_the_ledger_s_rows_cost_what_the_plan_says(tmp_path):
    noising = mechanism(tmp_path)
    for round in range(1, 7):
        released(noising, np.zeros(5, np.int64), round=round)
    assert Ledger(tmp_path / "ledger.sqlite").epsilon(PLAN.delta) == PLAN.epsilon(6)


def test_secret_cohorts_cost_less_and_dealt_ones_do_not():
    assert replace(PLAN, sampling="poisson").epsilon(6) < 0.6 * PLAN.epsilon(6)
    assert PLAN.sample_rate == 1.0
    assert replace(PLAN, sampling="poisson").sample_rate == 0.2


def test_the_count_and_the_sum_together_cost_what_z_says():
    """Multipliers a and b on one client are one of (a^-2 + b^-2)^-1/2; the count's is 2 sigma_b."""
    joint = (ADAPTIVE.sum_multiplier**-2 + (2 * ADAPTIVE.count_std) ** -2) ** -0.5
    assert joint == pytest.approx(2.0, rel=1e-12)
    assert ADAPTIVE.count_std == 2.0  # cohort / 20 would be less than z
    assert replace(ADAPTIVE, cohort=1000, clients=1000).count_std == 50
    assert math.isnan(sum_multiplier(2.0, 1.0))


@pytest.mark.parametrize(
    ("quantile", "first"),
    [(0.8, 0.05), *(pytest.param(q, f, marks=pytest.mark.slow) for q in (0.2, 0.5) for f in (0.05, 20.0))],
)
def test_the_clip_finds_the_quantile_of_the_norms(tmp_path, quantile, first):
    """Norms exp(N(0, 1)) of 1,000 clients: their quantile is known. sigma_b = 50 moves the clip by 1 % a round."""
    plan = ClientLevelPlan(1.0, first, cohort=1000, clients=1000, charges=200, quantile=quantile)
    noising, rng = mechanism(tmp_path, plan, random=SeededRandom(3)), np.random.default_rng(2)
    clips = []
    for round in range(1, 201):
        within = int((np.exp(rng.normal(size=1000)) <= noising.clip_norm).sum())
        released(noising, np.zeros(1, np.int64), round=round, counted=1000, within=within)
        clips.append(noising.clip_norm)
    expected = math.exp(math.sqrt(2) * _inverse_erf(2 * quantile - 1))
    assert np.mean(clips[-50:]) == pytest.approx(expected, rel=0.1)


def _inverse_erf(y):
    low, high = -5.0, 5.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.erf(middle) < y else (low, middle)
    return low


def test_each_round_spends_under_the_clip_it_was_folded_under(tmp_path):
    noising, clips = mechanism(tmp_path, ADAPTIVE), []
    for round in (1, 2, 3):
        clips.append(noising.clip_norm)
        released(noising, np.zeros(5, np.int64), round=round, counted=10, within=0)
    assert len(set(clips)) == 3
    assert [row.spend.clip_norm for row in Ledger(tmp_path / "ledger.sqlite").rows()] == clips
    noted = [json.loads(line) for line in (tmp_path / "evidence.jsonl").read_text().splitlines()]
    assert [line["clip_norm"] for line in noted] == clips


def test_with_a_count_the_sum_gets_the_larger_noise(tmp_path):
    n = 200_000
    noise = released(mechanism(tmp_path, ADAPTIVE), np.zeros(n, np.int64)).astype(np.float64)
    std = 2.0 * math.sqrt(4 / 3) * 0.5 / 10  # sigma_b = z: z_delta = z (1 - 1/4)^-1/2
    assert abs(noise.var() / std**2 - 1) < 5 * math.sqrt(2 / n)


def test_the_count_gets_the_noise_that_it_is_accounted_for(tmp_path):
    """With nobody there the clip moves by exp(-0.2 sigma_b N(0, 1) / cohort)."""
    noising, clips = mechanism(tmp_path, ADAPTIVE), [0.5]
    for round in range(1, 151):
        released(noising, np.zeros(1, np.int64), round=round)
        clips.append(noising.clip_norm)
    moves = np.diff(np.log(clips))
    assert abs(moves.var() / (0.2 * 2.0 / 10) ** 2 - 1) < 5 * math.sqrt(2 / 150)


def test_silence_moves_the_clip_by_noise_alone(tmp_path):
    """Nobody answered: a share of a half, since each indicator counts less a half."""
    plan = replace(ADAPTIVE, noise_multiplier=1e-2, cohort=50)  # sigma_b 2.5: 0.05 of the cohort
    noising = mechanism(tmp_path, plan)
    released(noising, np.zeros(1, np.int64))
    assert abs(math.log(noising.clip_norm / 0.5)) < 0.2 * 6 * 0.05


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier=0.0"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"clip_norm": math.nan}, "clip_norm=nan"),
        ({"cohort": 0}, "cohort=0"),
        ({"cohort": 51}, "cohort=51 of 50"),
        ({"sampling": "fixed"}, "sampling='fixed'"),
        ({"quantile": 1.0}, "quantile=1.0"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"accountant": "moments"}, "accountant='moments'"),
        ({"charges": -1}, "steps=-1"),
        ({"noise": "seeded"}, "noise='seeded': must be one of discrete, gaussian"),
        ({"noise_multiplier": 1e6}, "the grid of noise=discrete holds clip norms of 0.0001 to 0.0655 there"),
        ({"noise_multiplier": 1e-9}, "the grid of noise=discrete holds clip norms of 477 to 1e+03 there"),
        ({"clients": 2**32, "cohort": 10}, "holds clip norms of 0.0001 to 0.25 there"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(wrong, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        replace(PLAN, **wrong)


class Silent(SeededRandom):
    def normal(self, shape):
        return np.zeros(shape)

    def discrete_gaussian(self, sigma, count):
        return np.zeros(count, np.int64)


@pytest.mark.parametrize(
    ("counted", "within", "moved"),
    # b = within less half of those counted, over the cohort of 10, and a half; C moves by exp(-0.2 (b - 0.5)).
    [(10, 10, -0.1), (10, 0, 0.1), (10, 5, 0.0), (0, 0, 0.0), (4, 4, -0.04)],
)
def test_the_clip_moves_toward_the_quantile_by_the_rule_of_andrew_et_al(tmp_path, counted, within, moved):
    noising = mechanism(tmp_path, ADAPTIVE, random=Silent(0))
    released(noising, np.zeros(3, np.int64), counted=counted, within=within)
    assert noising.clip_norm == pytest.approx(PLAN.clip_norm * math.exp(moved))


def test_the_evidence_says_the_source_and_how_many_values_got_noise(tmp_path):
    released(mechanism(tmp_path), np.zeros(70_000, np.int64))
    told = json.loads((tmp_path / "evidence.jsonl").read_text())
    assert (told["noise_source"], told["noised_scalars"], told["divisor"]) == ("os", 70_000, 10)


@pytest.mark.parametrize(("sampling", "public"), [("cyclic", 10), ("poisson", 50)])
def test_the_spend_names_whom_the_rate_is_of(tmp_path, sampling, public):
    noising = mechanism(tmp_path, replace(PLAN, sampling=sampling))
    released(noising, np.zeros(3, np.int64))
    (row,) = Ledger(tmp_path / "ledger.sqlite").rows()
    assert row.spend.nominal_examples == public


def test_the_norm_of_a_long_update_is_of_all_its_parts():
    assert l2_norm(np.ones(1_000_003, np.float32)) == pytest.approx(math.sqrt(1_000_003))


# --- exact noise -----------------------------------------------------------------------------------------


class Counted(SecureRandom):
    """What was drawn, and nothing of floats."""

    def __init__(self):
        super().__init__()
        self.sigmas = []

    def normal(self, shape):
        raise AssertionError("a float Gaussian was drawn")

    def discrete_gaussian(self, sigma, count):
        self.sigmas.append(sigma)
        return super().discrete_gaussian(sigma, count)


@pytest.mark.hostile
def test_noise_on_sum_and_count_is_exact_and_of_a_little_more_than_the_std_that_is_spent(tmp_path):
    """It was once a float64 Gaussian, under a README that said discrete and exact."""
    random = Counted()
    released(mechanism(tmp_path, ADAPTIVE, random=random), np.zeros(9, np.int64), counted=10, within=5)
    on_sum, on_count = random.sigmas
    accounted = ADAPTIVE.sum_multiplier * 0.5 * GRID
    assert accounted**2 + 9 <= on_sum**2 <= (accounted**2 + 9) * (1 + 1e-14)  # 9 units of variance: the grid's price
    assert (ADAPTIVE.count_std * 2**16) ** 2 + 9 <= on_count**2 * (1 + 1e-15)
    (row,) = Ledger(tmp_path / "ledger.sqlite").rows()
    told = json.loads((tmp_path / "evidence.jsonl").read_text())
    assert row.spend.mechanism == told["mechanism"] == "discrete-gaussian"
    assert told["sum_multiplier"] >= ADAPTIVE.sum_multiplier


def test_what_leaves_is_a_whole_number_of_steps_over_the_cohort(tmp_path):
    """With a cohort of 8 nothing is rounded up to 2^24 steps: each value times 8 lies on the grid of 2^-32."""
    plan = replace(PLAN, cohort=8, noise_multiplier=1e-3, clip_norm=0.5)  # std 2^-11: 2^21 steps
    mean = released(mechanism(tmp_path, plan), np.full(10_000, 3, np.int64)).astype(np.float64)
    steps = mean * 8 * GRID
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(steps).max() < 2**24
    # Whatever the noise, a sum that is one step larger takes the same values with other probabilities.
    assert len({int(step) % 2 for step in steps}) == 2


def test_exact_noise_has_the_distribution_of_theory(tmp_path):
    """Kolmogorov and Smirnov against the Gaussian, whose distance from the discrete one is below 1e-6 here."""
    from scipy.stats import kstest

    n = 100_000
    noise = released(mechanism(tmp_path), np.zeros(n, np.int64)).astype(np.float64)
    assert kstest(noise / (2.0 * 0.5 / 10), "norm").pvalue > 1e-4


def test_float_noise_is_drawn_only_where_it_is_asked_for_and_is_spent_as_such(tmp_path):
    class Floats(SecureRandom):
        def discrete_gaussian(self, sigma, count):
            raise AssertionError("exact noise was drawn")

    plan = replace(ADAPTIVE, noise="gaussian")
    released(mechanism(tmp_path, plan, random=Floats()), np.zeros(5, np.int64), counted=10, within=5)
    (row,) = Ledger(tmp_path / "ledger.sqlite").rows()
    assert row.spend.mechanism == "gaussian"


def test_the_steps_of_the_noise_are_those_of_the_accumulator(tmp_path):
    from fedq.codec.accumulator import GRID as STEPS
    from fedq.privacy.client_level import GRID as NOISE

    assert STEPS == NOISE
    with pytest.raises(RuntimeError, match="the noise is for steps of"):
        mechanism(tmp_path).release(np.zeros(5, np.int64), grid=2.0**20, round=1, clip_norm=None, counted=0, within=0)
    assert Ledger(tmp_path / "ledger.sqlite").rows() == []


@pytest.mark.parametrize("noise", [0.01, 1e5])
def test_a_clip_that_moves_stays_where_the_grid_holds_its_noise(tmp_path, noise):
    """Everybody within, or nobody, 300 rounds long: the clip ends at a bound, and noise is drawn there all the same."""
    for within in (0, 10):
        plan = replace(ADAPTIVE, noise_multiplier=noise, clip_norm=1e-3, charges=1)
        noising = mechanism(tmp_path / str(within), plan)
        noising.clip_norm = plan.largest_clip if within == 0 else plan.least_clip
        for round in (1, 2):
            released(noising, np.zeros(3, np.int64), round=round, counted=10, within=within)
            assert plan.least_clip <= noising.clip_norm <= plan.largest_clip


# --- several runs of one ledger --------------------------------------------------------------------------


def of_run(folder, run, plan):
    return ClientLevelMechanism(
        plan,
        ledger=folder / "ledger.sqlite",
        evidence=folder / f"{run}.jsonl",
        random=SecureRandom(),
        data="d",
        run=run,
    )


def test_a_second_run_is_admitted_where_both_fit_and_not_where_they_do_not(tmp_path):
    both = epsilon([Mechanism(2.0, 1.0, 4)], 1e-5)
    plan = replace(PLAN, charges=2, target_epsilon=both)  # 6 rounds of 10 of 50: 2 turns
    first = of_run(tmp_path, "first", plan)
    assert first.admit() == []
    for round in range(1, 7):
        released(first, np.zeros(2, np.int64), round=round)
    assert of_run(tmp_path, "second", plan).admit() == [Mechanism(2.0, 1.0, 1)] * 2
    with pytest.raises(Declined, match=r"budget: epsilon would be .* with the 2 rounds that count against one client"):
        of_run(tmp_path, "second", replace(plan, target_epsilon=math.nextafter(both, 0))).admit()


def test_two_runs_at_once_do_not_both_fit_into_what_is_left_for_one(tmp_path):
    """Both were admitted on an empty ledger; the guard under the lock turns the slower one away before any noise."""
    plan = replace(PLAN, charges=1, target_epsilon=epsilon([Mechanism(2.0, 1.0, 1)], 1e-5))
    one, other = of_run(tmp_path, "one", plan), of_run(tmp_path, "other", plan)
    assert one.admit() == other.admit() == []
    released(one, np.zeros(2, np.int64))
    with pytest.raises(Declined, match=r"budget: .* with round 1"):
        released(other, np.zeros(2, np.int64))
    assert len(Ledger(tmp_path / "ledger.sqlite").rows()) == 1
    assert not (tmp_path / "other.jsonl").exists()


def test_a_ledger_of_other_data_takes_no_run(tmp_path):
    released(mechanism(tmp_path), np.zeros(2, np.int64))
    with pytest.raises(LedgerError, match="holds spends of 'digits', this one is of 'd'"):
        of_run(tmp_path, "second", PLAN).admit()
