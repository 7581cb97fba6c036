"""Which files of a DP run may be shown is said in its folder, of every file there is."""

import json
from pathlib import Path

import pytest

import fedq
from fedq.artifacts.publication import PUBLISH, UNKNOWN, finding, publication

pytestmark = pytest.mark.integration

RUN = ["rounds=1", "clients=2", "model.hidden=[8]", "train.steps=2", "train.epochs=null"]
CLIENT = ["privacy.client.target_epsilon=8", "privacy.client.target_delta=1e-3"]
UNITS = {
    "example": ["privacy=example", "quant=int8", "evaluate=dp"],
    "client": ["privacy=client", *CLIENT],
    "both": ["privacy=both", "privacy.target_epsilon=8", *CLIENT],
}


@pytest.fixture(scope="module", params=UNITS)
def run(request, tmp_path_factory):
    return fedq.run([*RUN, *UNITS[request.param]], root=tmp_path_factory.mktemp("run"), progress=False)


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.slow
@pytest.mark.hostile
def test_every_file_of_a_private_run_is_classified_in_its_folder(run):
    """A run folder once said nowhere that `log.txt` holds the size of a shard."""
    said = (run.folder / PUBLISH).read_text()
    assert [name for name in files(run.folder) if f"  {name}: " not in said] == []
    assert UNKNOWN not in said


def test_what_clients_and_a_trusted_server_keep_is_not_to_be_shown(run):
    names = [name for name in files(run.folder) if name.startswith(("clients/", "server/"))]
    assert names
    assert {finding(name, run).verdict for name in names} == {"not covered"}
    said = (run.folder / PUBLISH).read_text()
    assert said.index("Not covered:") < said.index("  clients/0/log.txt: the true size of the client's shard")


def test_the_model_is_covered_and_figures_that_are_not_are_named(run):
    assert finding("model.safetensors", run).verdict == "covered"
    rows = [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]
    why = finding("rounds.jsonl", run).why
    for key in ("seconds", "reasons", *(run.client_level.get("not_covered", []))):
        assert key in why
    assert "seconds" in rows[0]


def test_a_file_that_fedq_does_not_know_is_not_to_be_shown(run):
    assert finding("notes.txt", run).verdict == "not covered"
    assert f"  notes.txt: {UNKNOWN}" in publication(["notes.txt"], run)


def test_a_run_that_is_not_private_says_so_first(run):
    said = publication([PUBLISH], run)
    assert ("So nothing here is covered" in said) == (not run.private)


def test_a_run_without_privacy_claims_nothing_and_has_no_such_file(tmp_path):
    assert not (fedq.run([*RUN, "privacy=off", "quant=off"], root=tmp_path, progress=False).folder / PUBLISH).exists()
