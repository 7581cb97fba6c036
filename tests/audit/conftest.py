"""A small client to audit, with or without a bug planted."""

from dataclasses import replace

import pytest

from fedq.audit import workplace
from fedq.data import digits
from fedq.privacy import DPSGD, DPPlan
from tests.audit.bugs import Bug
from tests.audit.planted import Setting, subject_of

# Full batches, whose curve is known in closed form: an accountant's takes seconds.
PLAN = DPPlan(
    noise_multiplier=1.5,
    clip_norm=0.5,
    sample_rate=1.0,
    steps=2,
    nominal_examples=4,
    target_epsilon=8.0,
    delta=1e-5,
    noise="discrete",
)


@pytest.fixture(scope="session")
def examples():
    return digits().train


@pytest.fixture
def folder():
    with workplace() as folder:
        yield folder


@pytest.fixture
def make_subject(folder):
    """A subject with the given parts in place of fedq's own, and another model or noise."""

    def make(*, mechanism=None, model="mlp", noise="discrete", sample_rate=1.0, **parts):
        bug = Bug(calibrate=lambda **asked: 1.5, mechanism=mechanism or DPSGD)
        subject = subject_of(Setting(model=model), bug, folder)
        return replace(subject, plan=replace(PLAN, noise=noise, sample_rate=sample_rate), **parts)

    return make
