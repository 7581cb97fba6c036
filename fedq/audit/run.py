"""Checks of a finished run: its ledgers against its claim, and membership scores of its model. Knows run folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedq.artifacts.int8_model import exported_model
from fedq.audit import accountant
from fedq.audit.findings import Check
from fedq.audit.membership import Membership, membership
from fedq.experiment import Experiment
from fedq.experiment.ledgers import LEDGER
from fedq.privacy import AnyMechanism, Ledger, LedgerError
from fedq.quant import Int8Model
from fedq.results import Result
from fedq.training import LOSSES, outputs_of

INT8_MODEL = "model.onnx"


def account_check(folder: Path, result: Result) -> tuple[Check | None, list[str]]:
    """(check that the clients' ledgers are complete and support the run's claim, checks that were left out).

    The rows are composed by fedq's accountant and by another one.
    """
    ledgers = sorted(folder.glob(f"clients/*/{LEDGER}"))
    if result.epsilon is None or result.delta is None or not ledgers:
        return None, ["the account: no client's ledger lies with the run"]
    wrong, most, rows = [], 0.0, set[tuple[AnyMechanism, ...]]()
    for path in ledgers:
        try:
            ledger = Ledger(path, access="read")
            ledger.verify()
            most = max(most, ledger.epsilon(result.delta))
            rows.add(tuple(ledger.mechanisms()))
        except LedgerError as error:
            wrong.append(str(error))
    # With prv, the tighter accountant: a run that used rdp claimed a larger epsilon.
    if not wrong and most > result.epsilon * (1 + 1e-9) + 1e-9:
        wrong.append(f"a ledger says epsilon {most:.4g}, the run {result.epsilon:.4g}")
    seen = f"{len(ledgers)} ledgers are whole; the largest epsilon is {most:.4g}"
    left_out = []
    if accountant.available():
        by_dp_accounting = max((accountant.epsilon_by_dp_accounting(row, result.delta) for row in rows), default=0.0)
        if not wrong and accountant.exceeds(by_dp_accounting, result.epsilon):
            wrong.append(f"a ledger has epsilon {by_dp_accounting:.4g} by dp-accounting, the run {result.epsilon:.4g}")
        seen += f", {by_dp_accounting:.4g} by dp-accounting"
    else:
        left_out.append(f"the account by another accountant: {accountant.NOT_INSTALLED}")
    claim = "every ledger is whole and none costs more than the run says"
    return Check("account", claim, 0.0 if wrong else 1.0, wrong[0] if wrong else seen, chance=False), left_out


def membership_scores(experiment: Experiment, folder: Path) -> tuple[list[Membership], list[str]]:
    """(membership scores of a run's model before and after int8, scores that were left out)."""
    dataset = experiment.dataset
    members, others = dataset.train, dataset.test if dataset.test is not None else dataset.validation
    if others is None or len(others) < 2:
        return [], ["membership: the data has no held-out example to compare with"]
    fake_quant = exported_model(experiment)
    models: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "before int8": lambda inputs: np.asarray(outputs_of(fake_quant, inputs))
    }
    left_out = []
    if (folder / INT8_MODEL).is_file():
        models["after int8"] = Int8Model(folder / INT8_MODEL)
    else:
        left_out.append(f"membership after int8: the run has no {INT8_MODEL}")
    loss = LOSSES[experiment.config.train.loss]
    scores = [
        membership(name, outputs(members.inputs), members, outputs(others.inputs), others, loss=loss)
        for name, outputs in models.items()
    ]
    return scores, left_out
