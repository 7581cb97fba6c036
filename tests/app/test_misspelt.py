"""A key that was meant for fedq is not taken for somebody else's."""

import pytest

from fedq.app.misspelt import OURS, misspelt
from fedq.app.node import Node
from fedq.config import ConfigError


def said(key):
    return [str(problem) for problem in misspelt({key: "x"})]


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("polcy", "policy"),
        ("plicy", "policy"),
        ("Policy", "policy"),
        ("policy-file", "policy"),
        ("policy_path", "policy"),
        ("fedq.policy", "policy"),
        ("epsilom", "epsilon"),
        ("max-epsilon", "epsilon"),
        ("eps", "epsilon"),
        ("budget", "epsilon"),
        ("dleta", "delta"),
        ("detla", "delta"),
        ("data_path", "data-path"),
        ("datapath", "data-path"),
        ("state_dir", "state-dir"),
        ("statedir", "state-dir"),
        ("head_dir", "head-dir"),
        ("heads-dir", "head-dir"),
        ("partition_id", "partition-id"),
        ("names", "name"),
    ],
)
def test_a_key_that_is_nearly_ours_is_refused_with_the_one_that_was_meant(key, ours):
    (problem,) = said(key)
    assert problem.startswith(f"node-config {key}=x: is not a key of fedq, but similar to {ours}, ")
    assert f"Use {ours}=" in problem


OTHERS = ["num-partitions", "dataset-path", "gpu", "device", "cid", "seed", "delay", "dataset", "data-dir", "site"]


@pytest.mark.parametrize(
    "key", [*OURS, *OTHERS, "hostname", "node-name", "model-path", "cache-dir", "role", "batch-size"]
)
def test_our_own_keys_and_those_of_others_are_let_be(key):
    assert said(key) == []


def test_a_node_with_a_slip_in_its_policy_takes_no_part():
    with pytest.raises(ConfigError, match=r"node-config polcy=/x: .*similar to policy.*Use policy="):
        Node.read({"name": "a", "polcy": "/x"})


def test_every_key_that_a_node_reads_is_ours():
    """With a key missing from the list, its own spelling would be somebody else's, and a slip in it too."""
    asked = []

    class Spy(dict):
        def get(self, key, default=None):
            asked.append(key)
            return super().get(key, default)

    Node.read(Spy({"name": "a"}))
    assert set(asked) == set(OURS)
