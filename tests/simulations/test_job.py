"""The benchmark of whole jobs: what it reads from contenders, which rows it makes, and when it refuses to compare."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulations.baselines import install
from simulations.baselines.install import HERE, python_of
from simulations.bench import job
from simulations.bench.job import UnequalWorkError, check_equal_work, compared, peer_commands
from simulations.bench.job_plan import Work, write_plan
from simulations.bench.job_processes import Outcome, fedq_outcome, output_of, peer_outcome
from simulations.bench.row import PeerAbsentError
from simulations.bench.timing import QUICK

WORK = Work(cohorts=[["3", "7"]], steps=40, private_steps=34)
EQUAL = {
    "fedq 1": [Outcome(20.0, 3.0, 0.75, cohorts=[["3", "7"]])],
    "loop": [Outcome(16.0, 2.0, 0.751, steps=40)],
    "fedq dp": [Outcome(40.0, 3.0, 0.60, cohorts=[["3", "7"]])],
    "flower dp": [Outcome(50.0, 6.0, 0.65, steps=34)],
}


def with_run(name: str, **changes: object) -> dict[str, list[Outcome]]:
    return {**EQUAL, name: [replace(EQUAL[name][0], **changes)]}


def test_the_last_report_of_a_peer_counts():
    output = (
        'noise\n{"accuracy": 0.1, "steps": 1, "first_round": 1}\n{"accuracy": 0.7, "steps": 9, "first_round": 103}\n'
    )
    assert peer_outcome(output, begun=100.0, ended=110.0) == Outcome(10.0, 3.0, 0.7, steps=9)


def test_a_peer_without_a_report_is_an_error_that_shows_its_output():
    with pytest.raises(RuntimeError, match=r"no result; the end of its output:\nall is well"):
        peer_outcome("all is well", begun=0.0, ended=1.0)


def test_the_first_round_of_fedq_began_as_long_before_the_last_row_as_all_rounds_took():
    rounds = [
        {"round": 0, "seconds": 0.5, "accepted": []},
        {"round": 1, "seconds": 2.0, "accepted": ["7", "3"]},
        {"round": 2, "seconds": 1.5, "accepted": ["5"]},
    ]
    outcome = fedq_outcome(rounds, 0.8, begun=100.0, ended=108.0, last_row=107.0)
    assert outcome == Outcome(8.0, 3.5, 0.8, cohorts=[["3", "7"], ["5"]])


def test_equal_work_passes():
    check_equal_work(EQUAL, WORK)


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("loop", {"steps": 41}, "loop made 41 local steps; the plan has 40"),
        ("flower dp", {"steps": 40}, "flower dp made 40 local steps; the plan has 34"),
        ("fedq 1", {"cohorts": [["3", "8"]]}, "fedq 1 trained other clients than the plan"),
        ("loop", {"accuracy": 0.72}, "accuracies differ by more than 0.02"),
        ("flower dp", {"accuracy": 0.5}, "accuracies differ by more than 0.08"),
    ],
)
def test_other_work_is_refused(name, changes, told):
    with pytest.raises(UnequalWorkError, match=told):
        check_equal_work(with_run(name, **changes), WORK)


def test_a_row_is_ours_over_the_peers_and_tells_both_accuracies():
    seconds = {name: runs[0].seconds for name, runs in EQUAL.items()}
    rows = {row.name: row for row in compared(seconds, EQUAL)}
    assert rows["job_vs_loop_1"].ratio == 20 / 16
    assert rows["job_vs_loop_1"].words.endswith("accuracy 75.0% and 75.1%")
    assert rows["job_dp_vs_flower_opacus_2"].ratio == 40 / 50


def test_a_comparison_without_its_peer_has_no_row():
    seconds = {name: runs[0].seconds for name, runs in EQUAL.items()}
    assert {row.name for row in compared(seconds, EQUAL)} == {"job_vs_loop_1", "job_dp_vs_flower_opacus_2"}


def test_every_comparison_is_of_contenders_that_exist():
    known = {*job.OURS, *job.PEERS}
    for ours, reference, _ in (*job.COMPARED.values(), *job.STARTUP.values()):
        assert {ours, reference} <= known


def test_a_peer_runs_in_its_environment_with_the_plan_and_without_one_it_is_left_out():
    commands = peer_commands(Path("/a/plan.npz"), {"pfl": "/e/python"})
    assert commands["loop"] == [sys.executable, str(HERE / "loop.py"), "/a/plan.npz", "2"]
    assert commands["pfl 2"] == ["/e/python", *job.TORCHRUN, str(HERE / "pfl_job.py"), "/a/plan.npz", "1"]
    assert not {"flower", "flower dp"} & set(commands)


def test_the_program_of_every_peer_and_its_pinned_requirements_are_there():
    for environment, words in job.PEERS.values():
        assert any((HERE / word).is_file() for word in words)
        if environment is not None:
            lines = (HERE / f"requirements-{environment}.txt").read_text().splitlines()
            assert all("==" in line for line in lines if not line.startswith("#"))


def test_a_peer_that_cannot_be_installed_is_absent_with_the_command_to_run(monkeypatch, tmp_path):
    def fails(command, **options):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(install, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(install.subprocess, "run", fails)
    with pytest.raises(PeerAbsentError, match=r"Run: python -m simulations\.baselines\.install pfl"):
        python_of("pfl")


def test_an_installed_peer_is_not_installed_again_until_its_requirements_change(monkeypatch, tmp_path):
    commands: list[list[str]] = []
    monkeypatch.setattr(install, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(install.subprocess, "run", lambda command, **options: commands.append(command))
    (tmp_path / "pfl").mkdir()
    assert python_of("pfl") == python_of("pfl") == str(tmp_path / "pfl" / "bin" / "python")
    assert len(commands) == 2  # the environment and its packages, once
    (tmp_path / "pfl" / ".installed").write_text("other requirements")
    python_of("pfl")
    assert len(commands) == 4


def test_rows_come_without_the_absent_peer_and_then_the_reason(monkeypatch):
    def absent(name):
        raise PeerAbsentError(f"no {name}")

    outcome = Outcome(10.0, 2.0, 0.75)
    monkeypatch.setattr(job, "python_of", absent)
    monkeypatch.setattr(job, "write_plan", lambda *arguments: WORK)
    monkeypatch.setattr(job, "run_fedq", lambda overrides: outcome)
    monkeypatch.setattr(job, "run_peer", lambda command: replace(outcome, steps=40))
    found = []
    with pytest.raises(PeerAbsentError, match="no pfl\nno flower"):
        found.extend(row.name for row in job.rows(QUICK))  # keeps what comes before the error
    assert found == ["job_vs_loop_1", "job_vs_loop_2", "job_int8_vs_float32", *(f"job_workers_{n}" for n in job.SHORT)]


def test_a_failed_program_is_an_error_with_the_end_of_what_it_said(tmp_path):
    with pytest.raises(RuntimeError, match="ended with status 3:\nlost"):
        output_of([sys.executable, "-c", "import sys; print('lost', file=sys.stderr); sys.exit(3)"], tmp_path)


def test_a_program_chooses_its_own_number_of_threads(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert output_of([sys.executable, "-c", "import os; print('OMP_NUM_THREADS' in os.environ)"], tmp_path) == "False\n"


SMALL = ["experiment=demo", "rounds=2", "clients=4", "fraction=0.5", "privacy=off"]


@pytest.mark.integration
def test_the_plan_holds_each_shard_once_and_the_steps_of_its_clients(tmp_path):
    path = tmp_path / "plan.npz"
    work = write_plan(path, SMALL, [*SMALL[:-1], "privacy.sample_rate=0.5", "train.steps=3"])
    with np.load(path) as plan:
        shards = [plan[f"shard{i}"] for i in range(int(plan["clients"]))]
        cohorts, private_steps = plan["cohorts"], int(plan["private_steps"])
    indices = np.concatenate(shards)
    assert len(np.unique(indices)) == len(indices)
    assert sorted(cohorts.ravel()) == [0, 1, 2, 3]
    assert (work.steps, private_steps, work.private_steps) == (2 * 4, 3, 3 * 4)  # the demo takes 2 steps a round


@pytest.mark.integration
def test_a_plan_in_which_a_client_trains_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="each client may train once only; use fewer rounds"):
        write_plan(tmp_path / "plan.npz", [*SMALL, "rounds=3"], SMALL)
