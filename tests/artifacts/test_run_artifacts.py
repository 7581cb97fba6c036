"""A run calls itself private only where every piece of evidence is there: each is taken away once."""

import json
import shutil
import sqlite3
from dataclasses import replace

import pytest
from torch import nn

from fedq.app.serving import serve
from fedq.artifacts.run_artifacts import ELSEWHERE, ClientFiles, epsilon_after, evidence_of
from fedq.experiment import build
from fedq.privacy import Ledger
from fedq.results import read_result
from fedq.runtime.local import in_process
from tests.quick import compose

pytestmark = pytest.mark.integration

WORDS = ["clients=3", "rounds=2", "fraction=0.67", "model.hidden=[8]", "quant=off", "codec=int8", "privacy=example"]
WORDS += ["privacy.target_epsilon=8", "privacy.accountant=rdp", "train.epochs=null", "train.steps=2"]


def served(folder, *overrides, with_files=True, model=None):
    """A whole run over clients of this process, whose server sees their files or does not."""
    experiment = build(compose([*WORDS, *overrides]), model=model)
    strategy = experiment.strategy()
    folder.mkdir()
    result = serve(
        experiment,
        strategy,
        in_process(experiment, strategy, folder),
        folder=folder,
        watch=lambda row: None,
        clients=ClientFiles(folder / "clients", folder.name) if with_files else None,
    )
    return experiment, result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A private run with all its evidence: 2 of 3 clients in each of 2 rounds."""
    return served(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(finished, tmp_path):
    """The same run's files, free to be damaged, and what is then said of it."""
    experiment, result = finished
    shutil.copytree(result.folder / "clients", tmp_path / "clients")

    class Run:
        folder = tmp_path / "clients"
        trained = next(client for row in result.history for client in row.accepted)
        rows, fields = result.history, result.reply_fields

        def verdict(self, *, rows=None, fields=None, run=None, experiment=experiment):
            files = ClientFiles(self.folder, result.folder.name if run is None else run)
            return evidence_of(
                experiment, files, self.rows if rows is None else rows, self.fields if fields is None else fields
            )

        def evidence(self):
            return self.folder / self.trained / "evidence.jsonl"

        def says_no(self, reason, **different):
            _, private, reasons = self.verdict(**different)
            assert private is False
            assert any(reason in said for said in reasons), reasons

    return Run()


def test_with_all_the_evidence_the_run_is_private(finished, run):
    _, result = finished
    assert (result.private, result.privacy_reasons) == (True, [])
    assert run.verdict() == (result.epsilon, True, [])


def test_a_client_spends_what_its_participations_cost(finished):
    experiment, result = finished
    most = max(sum(name in row.accepted for row in result.history) for name in "012")
    assert result.epsilon == epsilon_after(experiment, most)
    assert 0 < result.epsilon <= 8


# --- where the clients' files lie elsewhere ----------------------------------------------------------------


@pytest.fixture(scope="module")
def afar(tmp_path_factory):
    return served(tmp_path_factory.mktemp("runs") / "deployed", with_files=False)


def test_a_server_that_does_not_see_its_clients_files_claims_no_privacy_and_says_why(afar):
    _, result = afar
    assert (result.private, result.privacy_reasons) == (False, [ELSEWHERE])


def test_it_says_all_the_same_what_each_client_has_spent_at_most(afar):
    experiment, result = afar
    assert result.epsilon == epsilon_after(experiment, 2)
    assert (result.delta, result.privacy_unit) == (1e-5, "one training example of one client (add or remove)")


def test_what_it_says_is_in_the_file(afar):
    _, result = afar
    again = read_result(result.folder)
    assert (again.private, again.privacy_reasons, again.epsilon) == (False, [ELSEWHERE], result.epsilon)


def test_nothing_but_the_files_was_missing(afar):
    """The clients of that run did everything that is asked of them; only the server cannot know it."""
    experiment, result = afar
    files = ClientFiles(result.folder / "clients", result.folder.name)
    assert evidence_of(experiment, files, result.history, result.reply_fields) == (result.epsilon, True, [])


def test_with_privacy_off_nothing_is_claimed_and_nothing_is_missing(tmp_path):
    experiment = build(compose([w for w in WORDS if not w.startswith(("privacy", "train"))]))
    assert experiment.plan is None
    folder = tmp_path / "off"
    folder.mkdir()
    strategy = experiment.strategy()
    link = in_process(experiment, strategy, folder)
    result = serve(experiment, strategy, link, folder=folder, watch=lambda row: None, clients=None)
    assert (result.private, result.privacy_reasons, result.epsilon) == (False, [], None)


# --- one piece taken away ----------------------------------------------------------------------------------


def test_without_a_client_s_ledger_it_is_not_private(run):
    (run.folder / run.trained / "ledger.sqlite").unlink()
    run.says_no("no spend in the ledger")


def test_without_a_client_s_evidence_it_is_not_private(run):
    run.evidence().unlink()
    run.says_no("no noise was added")


def test_without_any_client_s_files_it_is_not_private(run):
    shutil.rmtree(run.folder)
    run.says_no("no noise was added")


def test_a_torn_line_proves_nothing(run):
    text = run.evidence().read_text()
    run.evidence().write_text(text[: len(text) // 2])
    run.says_no("no noise was added")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"noise_source": "seeded"}, "noise that others can reproduce"),
        ({"noise_multiplier": 0.0}, "noise multiplier 0.0"),
        ({"steps_noised": 1}, "1 steps noised, 2 spent"),
        ({"noised_scalars": 3}, "3 values noised of"),
        ({"clip_norm": 99.0}, "clip norm 99.0"),
        ({"sample_rate": 0.001}, "sampling rate 0.001"),
        ({"spend_row_id": 10_000}, "no spend in the ledger"),
        ({"round": 77}, "the spend is for round"),
    ],
)
def test_evidence_that_says_another_thing_than_the_ledger_counts_against(run, changes, reason):
    lines = [json.loads(line) for line in run.evidence().read_text().splitlines()]
    run.evidence().write_text("".join(json.dumps({**line, **changes}) + "\n" for line in lines))
    run.says_no(reason)


def test_a_ledger_that_was_written_over_is_not_verified(run):
    connection = sqlite3.connect(run.folder / run.trained / "ledger.sqlite")
    triggers = [name for (name,) in connection.execute("select name from sqlite_master where type = 'trigger'")]
    with connection:
        for name in triggers:
            connection.execute(f"drop trigger {name}")
        connection.execute("update spend set steps = 0")
    connection.close()
    run.says_no("the ledgers were not verified")


def test_a_ledger_that_is_no_ledger_is_not_verified(run):
    (run.folder / run.trained / "ledger.sqlite").write_bytes(b"not a ledger" * 100)
    run.says_no("the ledgers were not verified")


def test_a_ledger_that_a_person_vouches_for_is_not_private_and_the_reason_says_why_and_when(run):
    """Its spends were deleted, and the head's word that they were there was overruled: nobody knows what was spent."""
    path = run.folder / run.trained / "ledger.sqlite"
    Ledger(path).accept("the disk was restored")
    (said,) = Ledger(path).tip().accepted
    run.says_no(f"client {run.trained}, {said}")
    assert said.startswith("20")
    assert said.endswith("the disk was restored")


def test_a_spend_without_evidence_counts_against(run):
    """The client's code failed after the spend was written: what it had sent by then, nobody knows."""
    lines = run.evidence().read_text().splitlines(keepends=True)
    run.evidence().write_text("".join(lines[1:]))
    rows = [replace(row, accepted=[], clients=0) for row in run.rows]  # the server dropped every reply
    run.says_no("no noise was added", rows=rows)


def test_a_round_that_was_trained_and_dropped_is_judged_as_well(run):
    """Its update left the client all the same."""
    lines = [json.loads(line) for line in run.evidence().read_text().splitlines()]
    run.evidence().write_text("".join(json.dumps({**line, "noise_source": "seeded"}) + "\n" for line in lines))
    run.says_no("noise that others can reproduce", rows=[replace(row, accepted=[]) for row in run.rows])


def test_the_spends_of_another_run_are_not_this_one_s(run):
    run.says_no("the spend is of run 'run'", run="another")


def test_replies_that_nobody_looked_at_are_no_evidence(run):
    run.says_no("the fields of the replies were not checked", fields=[])


@pytest.mark.parametrize("field", ["fedq.metrics.loss", "fedq.metrics.num_examples", "error", "anything.else"])
def test_a_reply_that_held_more_than_noise_is_not_private(run, field):
    run.says_no(f"left a client without noise: {field}", fields=[*run.fields, field])


@pytest.mark.parametrize("reason", ["declined", "client_error", "error"])
def test_a_refusal_that_may_tell_of_the_data_is_not_private(run, reason):
    rows = [replace(row, reasons={reason: 1}) for row in run.rows]
    run.says_no(f"a refusal ({reason})", rows=rows)


@pytest.mark.parametrize("reason", ["budget", "no_reply", "packet_checksum"])
def test_a_refusal_that_is_a_function_of_public_numbers_is_no_matter(run, reason):
    assert run.verdict(rows=[replace(row, reasons={reason: 1}) for row in run.rows])[1:] == (True, [])


@pytest.mark.parametrize(
    ("fitted", "reason"), [(None, "the loader does not say"), (True, "scaled by statistics of the private examples")]
)
def test_inputs_that_hold_a_statistic_of_the_data_are_not_private(run, finished, fitted, reason):
    experiment, _ = finished
    other = replace(experiment, dataset=replace(experiment.dataset, fitted_on_private_data=fitted))
    run.says_no(reason, experiment=other)


def test_a_delta_that_only_a_small_public_number_allows_is_not_private(run, finished):
    """Whole shards of some 400 examples, told as 10: in a simulation they are there to be counted."""
    experiment, _ = finished
    loose = {name: replace(plan, delta=1e-3, nominal_examples=10) for name, plan in experiment.plans.items()}
    run.says_no("the largest true shard to leak whole", experiment=replace(experiment, plans=loose))


def test_noise_that_follows_from_the_seed_is_not_private(tmp_path):
    _, result = served(tmp_path / "seeded", "privacy.noise=seeded")
    assert result.private is False
    assert any("others can reproduce" in reason for reason in result.privacy_reasons)


class Failing(nn.Sequential):
    """Trains on nothing but the pairs of examples with which fedq probes a model beforehand."""

    def __init__(self, hidden):
        super().__init__(nn.Flatten(), nn.Linear(64, *hidden), nn.Tanh(), nn.Linear(*hidden, 10))

    def forward(self, inputs):
        if self.training and len(inputs) != 2:
            raise RuntimeError("no")
        return super().forward(inputs)


def test_a_server_that_sees_no_file_still_tells_which_codes_came(tmp_path):
    _, result = served(tmp_path / "declined", "privacy.nominal_examples=400", with_files=False, model=Failing)
    assert result.privacy_reasons == [ELSEWHERE, "a refusal (declined)"]


# --- the speed of the int8 model ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_quantized_run_tells_how_fast_its_int8_model_is_here(tmp_path):
    _, result = served(tmp_path / "int8", "quant=int8", "quant.weight_range=63", "rounds=1")
    assert result.int8_speedup > 0
    assert max(result.int8_profile, key=result.int8_profile.get) == next(iter(result.int8_profile))
    again = read_result(result.folder)
    assert (again.int8_speedup, again.int8_profile) == (result.int8_speedup, result.int8_profile)


def test_a_float_run_has_no_such_figure(finished):
    _, result = finished
    assert (result.int8_speedup, result.int8_profile) == (None, {})
