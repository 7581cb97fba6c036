"""FedProx against its formula (arXiv:1812.06127): the gradient of mu / 2 |w - w0|^2 is added to each step."""

import numpy as np
import pytest

from fedq.algorithms import FedAvg, FedProx


def test_each_step_is_pulled_to_the_global_model(quadratic):
    task, mu, lr = quadratic(weights=(0.5, 0.5)), 0.7, 0.1
    FedProx(mu=mu).client_update(task, {})
    w = start = np.array([0.5, 0.5])
    for _ in range(3):
        w = w - lr * ((w - task.target) + mu * (w - start))
    np.testing.assert_allclose(task.sent["update"], w - start, rtol=1e-5)


def test_the_first_step_is_that_of_fedavg(quadratic):
    ours, plain = quadratic(steps=1), quadratic(steps=1)
    FedProx(mu=5.0).client_update(ours, {})
    FedAvg().client_update(plain, {})
    assert ours.sent["update"].tolist() == plain.sent["update"].tolist()


@pytest.mark.parametrize("mu", [0, -1, float("nan"), float("inf")])
def test_a_mu_that_is_no_pull_is_refused(mu):
    with pytest.raises(ValueError, match="must be a finite number above 0; use algorithm=fedavg"):
        FedProx(mu=mu)
