"""What a finished run left behind: its ledgers beside its claim, its model's membership scores. Knows run folders."""

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
    """Whether the clients' ledgers are whole and cover the run's claim, and what could not be looked at.

    Their rows are composed by fedq's accountant and by another one.
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
    # By prv, the smaller of the accountants: a run that counted by rdp said more than that.
    if not wrong and most > result.epsilon * (1 + 1e-9) + 1e-9:
        wrong.append(f"a ledger says epsilon {most:.4g}, the run {result.epsilon:.4g}")
    seen = f"{len(ledgers)} ledgers are whole; the largest epsilon is {most:.4g}"
    left_out = []
    if accountant.available():
        elsewhere = max((accountant.epsilon_elsewhere(row, result.delta) for row in rows), default=0.0)
        if not wrong and accountant.exceeds(elsewhere, result.epsilon):
            wrong.append(f"a ledger costs epsilon {elsewhere:.4g} by dp-accounting, the run says {result.epsilon:.4g}")
        seen += f", {elsewhere:.4g} by dp-accounting"
    else:
        left_out.append(f"the account by another accountant: {accountant.NOT_THERE}")
    claim = "every ledger is whole and none costs more than the run says"
    return Check("account", claim, 0.0 if wrong else 1.0, wrong[0] if wrong else seen, chance=False), left_out


def membership_scores(experiment: Experiment, folder: Path) -> tuple[list[Membership], list[str]]:
    """Scores of a finished run's model before and after int8, and what could not be looked at."""
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
