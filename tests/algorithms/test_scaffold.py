"""SCAFFOLD against Algorithm 1 of arXiv:1910.06378, option II."""

import numpy as np

from fedq.algorithms import Scaffold

ALGORITHM = Scaffold()


def test_before_the_first_round_all_control_variates_are_zero():
    assert ALGORITHM.client_state(2)["control"].tolist() == ALGORITHM.server_state(2)["control"].tolist() == [0, 0]


def test_each_step_follows_the_gradient_minus_the_own_plus_the_shared_variate(quadratic):
    own, shared = np.float32([0.3, 0.1]), np.float32([-0.2, 0.4])
    task = quadratic(received={"control": shared})
    ALGORITHM.client_update(task, {"control": own})
    y = np.zeros(2)
    for _ in range(3):
        y = y - 0.1 * ((y - task.target) - own + shared)
    np.testing.assert_allclose(task.sent["update"], y, rtol=1e-5)


def test_the_own_variate_becomes_the_mean_gradient_of_the_round(quadratic):
    """c_i+ = c_i - c + (x - y) / (K lr), the mean of the corrected gradients, minus the correction: by hand."""
    own, shared = np.float32([0.3, 0.1]), np.float32([-0.2, 0.4])
    task = quadratic(received={"control": shared})
    state = ALGORITHM.client_update(task, {"control": own})
    y, gradients = np.zeros(2), []
    for _ in range(3):
        gradients.append(y - task.target)
        y = y - 0.1 * (gradients[-1] - own + shared)
    np.testing.assert_allclose(state["control"], np.mean(gradients, axis=0), rtol=1e-5)
    np.testing.assert_allclose(task.sent["control"], state["control"] - own, rtol=1e-5)


def test_the_own_variate_moves_by_what_the_server_decodes(quadratic):
    class Coarse(type(quadratic())):
        def decoded(self, name):
            return np.round(self.sent[name])

    task = quadratic(received={"control": np.zeros(2, np.float32)})
    task.__class__ = Coarse
    state = ALGORITHM.client_update(task, {"control": np.float32([1, 1])})
    assert state["control"].tolist() == (1 + np.round(task.sent["control"])).tolist()


def test_the_shared_variate_stays_the_mean_of_all_clients_own(quadratic):
    """Two of four clients take part in each round, whichever."""
    targets = [(1.0, 0.0), (0.0, 2.0), (-1.0, 1.0), (3.0, -1.0)]
    states = [ALGORITHM.client_state(2) for _ in targets]
    server, x = ALGORITHM.server_state(2), np.zeros(2, np.float32)
    for cohort in ([0, 1], [2, 3], [1, 2], [0, 3]):
        sent = []
        for client in cohort:
            task = quadratic(targets[client], x, received=server)
            states[client] = ALGORITHM.client_update(task, states[client])
            sent.append(task.sent)
        means = {name: np.mean([s[name] for s in sent], axis=0) for name in ("update", "control")}
        gradient, server = ALGORITHM.server_update(means, server, participation=0.5)
        x = x - gradient
    np.testing.assert_allclose(server["control"], np.mean([s["control"] for s in states], axis=0), atol=1e-6)


def test_with_unlike_clients_it_reaches_the_optimum_that_fedavg_misses(quadratic):
    """Two quadratics of curvature 1 and 10: FedAvg of many local steps stops off the optimum of their mean."""

    class Steep(type(quadratic())):
        curvature = np.float32(10)

        def fit(self, correction=None):
            w = self.weights.copy()
            for _ in range(self.steps):
                gradient = self.curvature * (w - self.target)
                if correction is not None:
                    import torch

                    gradient = gradient + correction(torch.from_numpy(w)).numpy()
                w = w - np.float32(self.lr) * gradient
            return w

    optimum = (1 * 1.0 + 10 * 0.0) / 11
    x, server, states = np.zeros(1, np.float32), ALGORITHM.server_state(1), [ALGORITHM.client_state(1)] * 2
    for _ in range(200):
        tasks = [quadratic((1.0,), x, received=server, steps=20, lr=0.02)]
        tasks.append(Steep(np.float32([0.0]), x, server, lr=0.02, steps=20))
        states = [ALGORITHM.client_update(task, state) for task, state in zip(tasks, states, strict=True)]
        means = {name: (tasks[0].sent[name] + tasks[1].sent[name]) / 2 for name in ("update", "control")}
        gradient, server = ALGORITHM.server_update(means, server, participation=1.0)
        x = x - gradient
    assert abs(float(x[0]) - optimum) < 1e-3
