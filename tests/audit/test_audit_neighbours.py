"""What pairs of neighbours show of the right mechanism, and of models that they cannot judge."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedq.audit import AuditError
from fedq.audit.neighbours import CLAIMS, neighbour_checks
from fedq.privacy import DPSGD
from fedq.training import Trainer, layout_of, read_vector


def checks_of(subject, examples, pairs):
    heard = []
    checks = neighbour_checks(subject, examples, pairs=pairs, rng=np.random.default_rng(0), tell=heard.append)
    assert heard[-1] == pairs
    return {check.name: check for check in checks}


def test_the_right_mechanism_holds_every_claim_and_uses_the_whole_clip(make_subject, examples):
    found = checks_of(make_subject(), examples, 60)
    assert list(found) == list(CLAIMS)
    assert {check.p_value for check in found.values()} == {1.0}
    # Canaries aside, gradients longer than the clip norm are scaled to just below it.
    assert 0.99 <= float(found["sensitivity"].seen.split("largest move ")[1].split()[0]) <= 1.0


@pytest.mark.slow
def test_ten_thousand_pairs_of_neighbours_are_told_apart_by_nothing(make_subject, examples):
    assert {check.p_value for check in checks_of(make_subject(), examples, 10_000).values()} == {1.0}


def test_a_model_that_draws_masks_is_not_judged_by_its_sums(make_subject, examples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
    subject = make_subject()
    trainer = Trainer(model, layout_of(model), subject.trainer.recipe)
    subject = replace(subject, trainer=trainer, weights=read_vector(model, trainer.layout))
    found = checks_of(subject, examples, 20)
    assert "sensitivity" not in found
    assert {check.p_value for check in found.values()} == {1.0}


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
