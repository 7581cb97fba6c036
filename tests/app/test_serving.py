"""The server's job where not all clients came: who is let in, how large a round is, what a budget still covers."""

from dataclasses import replace

import pytest

from fedq.app.serving import serve
from fedq.artifacts.run_artifacts import ClientFiles
from fedq.config import public
from fedq.experiment import build
from fedq.runtime.local import in_process
from fedq.server import Roster
from fedq.server.roster import TooFewClientsError
from fedq.server.round_aggregate import Rejected
from tests.quick import compose

pytestmark = pytest.mark.integration

USUAL = ["rounds=4", "model.hidden=[8]", "quant=off", "train.epochs=null", "train.steps=1"]
PRIVATE = [*USUAL, "privacy=example", "privacy.target_epsilon=8", "privacy.accountant=rdp"]


class Link:
    """A link to clients of this process, of whom only some come."""

    def __init__(self, experiment, strategy, folder, *, come):
        self._link, self._come = in_process(experiment, strategy, folder), come
        self.gather, self.close, self.outputs = self._link.gather, self._link.close, self._link.outputs

    def meet(self):
        roster, traffic = self._link.meet()
        refused = [Rejected(name, "version") for name in roster.nodes if name not in self._come]
        return Roster({name: roster.nodes[name] for name in self._come}, refused), traffic


@pytest.fixture
def served(tmp_path):
    def served(overrides, *, come):
        experiment = build(compose(overrides))
        strategy = experiment.strategy()
        link = Link(experiment, strategy, tmp_path, come=come)
        files = ClientFiles(tmp_path / "clients", tmp_path.name)
        return serve(experiment, strategy, link, folder=tmp_path, watch=lambda row: None, clients=files)

    return served


def test_a_round_takes_its_share_of_those_who_came(served):
    result = served([*USUAL, "clients=10", "fraction=0.5"], come=list("012345"))
    assert [row.clients for row in result.history[1:]] == [3] * 4  # floor(0.5 * 6)


def test_under_dp_a_round_is_no_larger_a_share_than_the_one_that_the_noise_was_made_for(served):
    # 2 of 3 a round, so each takes part in at most ceil(4 * 2 / 3) = 3 of 4 rounds; of 2 clients, 2 a round would be 4.
    result = served([*PRIVATE, "clients=3", "fraction=0.67"], come=["0", "2"])
    taken = {name: sum(name in row.accepted for row in result.history) for name in "012"}
    assert max(taken.values()) <= public.participation_cap(compose([*PRIVATE, "clients=3", "fraction=0.67"])) == 3
    assert [row.clients for row in result.history[1:]] == [1] * 4  # floor(2 * 2 / 3)
    assert result.status == "finished"
    assert result.epsilon <= 8
    assert result.private, result.privacy_reasons


def test_under_dp_so_few_that_a_round_would_overspend_begin_nothing(served):
    with pytest.raises(TooFewClientsError, match="1 of 3 clients answered, too few for a round"):
        served([*PRIVATE, "clients=3", "fraction=0.67"], come=["2"])


def test_without_dp_one_client_is_a_round(served):
    assert [row.clients for row in served([*USUAL, "clients=3"], come=["2"]).history[1:]] == [1] * 4


def test_fewer_than_a_round_needs_begin_nothing_and_it_is_said_who_was_refused_and_why(served, tmp_path):
    few = [*USUAL, "clients=3", "strategy.min_clients=3"]
    with pytest.raises(TooFewClientsError, match=r"2 of 3 clients answered, too few for a round \(1: version\)"):
        served(few, come=["0", "2"])
    assert not (tmp_path / "rounds.jsonl").exists()


def test_where_nobody_came_nothing_begins(served):
    with pytest.raises(TooFewClientsError, match="0 of 3 clients answered"):
        served([*USUAL, "clients=3"], come=[])


def test_a_client_whom_the_experiment_does_not_know_takes_no_part(tmp_path):
    experiment = build(compose([*USUAL, "clients=3"]))
    strategy = experiment.strategy()
    link = Link(experiment, strategy, tmp_path, come=list("012"))
    known = replace(experiment, config=replace(experiment.config, clients=2, names=["0", "1"]))
    result = serve(known, strategy, link, folder=tmp_path, watch=lambda row: None, clients=None)
    assert {name for row in result.history for name in row.accepted} == {"0", "1"}
    assert result.history[0].rejected == [{"client": "2", "reason": "unknown_node"}]
