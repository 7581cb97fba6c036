"""What pairs of neighbours show of the right mechanism, and of models that they cannot judge."""

from unittest.mock import patch

import numpy as np
import pytest

from fedq.audit import AuditError
from fedq.audit.neighbours import CLAIMS, neighbour_checks
from fedq.privacy import DPSGD
from fedq.privacy.clipping import clip_and_round
from fedq.privacy.mechanisms.discrete_gaussian import DiscreteGaussian


def checks_of(subject, examples, pairs):
    heard = []
    checks = neighbour_checks(subject, examples, pairs=pairs, rng=np.random.default_rng(0), tell=heard.append)
    assert heard[-1] == pairs
    return {check.name: check for check in checks}


@pytest.mark.integration
def test_the_right_mechanism_holds_every_claim_and_uses_the_whole_clip(make_subject, examples):
    found = checks_of(make_subject(), examples, 60)
    assert list(found) == list(CLAIMS)
    assert {check.p_value for check in found.values()} == {1.0}
    # Canaries aside, gradients longer than the clip norm are scaled to just below it.
    assert 0.99 <= float(found["sensitivity"].seen.split("largest move ")[1].split()[0]) <= 1.0


@pytest.mark.slow
def test_ten_thousand_pairs_of_neighbours_are_told_apart_by_nothing(make_subject, examples):
    assert {check.p_value for check in checks_of(make_subject(), examples, 10_000).values()} == {1.0}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dropout", "views", "front"])
@pytest.mark.parametrize("noise", ["discrete", "gaussian"])
def test_models_that_draw_are_judged_by_their_sums_too(make_subject, examples, model, noise):
    """Masks and views are each example's own under a replayed source, wherever it stands."""
    found = checks_of(make_subject(model=model, noise=noise), examples, 40)
    assert {check.p_value for check in found.values()} == {1.0}
    assert float(found["sensitivity"].seen.split("largest move ")[1].split()[0]) > 0.9


@pytest.mark.slow
@pytest.mark.hostile
@pytest.mark.parametrize("model", ["dropout", "mlp"])
def test_a_clip_that_is_a_tenth_too_long_is_seen_in_models_that_draw_too(make_subject, examples, model):
    """Models with dropout had their sensitivity left out."""

    class Longer(DPSGD):
        def run(self, *arguments, **named):
            def longer(contributions, parameters, clip_norm, pruned, **options):
                return 1.1 * clip_and_round(contributions, parameters, clip_norm, pruned, **options)

            with patch.object(DiscreteGaussian, "clipped_sum", staticmethod(longer)):
                return super().run(*arguments, **named)

    assert checks_of(make_subject(mechanism=Longer, model=model), examples, 60)["sensitivity"].p_value == 0.0


@pytest.mark.integration
def test_one_example_that_stops_the_client_is_a_finding(make_subject, examples):
    class AfraidOfLargeValues(DPSGD):
        def run(self, model, inputs, targets, **named):
            if len(inputs) and float(inputs.max()) > 1e6:
                raise ValueError("value too large")
            return super().run(model, inputs, targets, **named)

    found = checks_of(make_subject(mechanism=AfraidOfLargeValues), examples, 60)
    assert found["reply"].p_value == 0.0
    assert "value too large" in found["reply"].seen


def test_a_client_that_refuses_real_examples_cannot_be_audited(make_subject, examples):
    class Refusing(DPSGD):
        def run(self, model, inputs, targets, **named):
            if len(inputs):
                raise ValueError("no examples, please")
            return super().run(model, inputs, targets, **named)

    with pytest.raises(AuditError, match="no examples, please"):
        checks_of(make_subject(mechanism=Refusing), examples, 60)
