"""The privacy statement of a run: the exact claim behind its epsilon (after NIST SP 800-226). Knows run folders.

Every number comes from the ledgers and the result of the run; a test checks that all required items are there.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from fedq.config import Config
from fedq.config.client_level import protects_examples
from fedq.config.config_file import read_config
from fedq.core.wording import plural, spent
from fedq.experiment.client_level import SERVER_FILES
from fedq.experiment.ledgers import LEDGER, ledger_file, server_ledger_file
from fedq.experiment.plans import plan_of
from fedq.privacy import MOST_EXACT, AnyMechanism, Ledger, Row, Spend, charged, epsilon, is_coarse
from fedq.privacy.gdp import DELTAS, gaussian_mu
from fedq.privacy.spend import DISCRETE, GAUSSIAN, LAPLACE
from fedq.results import Result, read_result
from fedq.results.result import ALONE

UNIT = "one training example (a row of inputs with its target) of one client"
ADJACENCY = (
    "add or remove one example of one client; how many a client holds is protected too. A person with k examples is "
    "protected at about k times the epsilon, and a larger delta"
)
ADVERSARY = (
    "the server and all other clients together: they see every message and model, choose the weights that are "
    "sent and the order of rounds, and run fedq's own code on the client as it is "
    "(local model: a client trusts only itself)"
)
NOT_COVERED = (
    "the client runs the code of the bundle: an operator who ships other code is not bound by this statement",
    "tuning: hyperparameters (clip norm, learning rate, rounds, model) that were chosen by looking at private data, "
    "and the choice of the published run among several. A ledger counts runs, not what was learnt from looking",
    "float32 kernels that round by values: fedq tests on made-up examples and weights, but does not prove, that an "
    "example's gradient has the same bits in every batch",
    "side channels: time, memory, power, whether a client answers or fails",
    "what is public by declaration: the shape of an example, the labels, the name of the data, who the clients are",
    "facts about the population, which the model is meant to learn",
    "readers of the client's disk or memory: ledger, log and data are not encrypted",
)
FLOAT_NOISE = (
    "the noise is a floating-point Gaussian: epsilon is that of the ideal mechanism, and attacks on low bits "
    "(Mironov 2012) are harder, not excluded"
)
MECHANISMS = {
    GAUSSIAN: "Poisson-subsampled Gaussian on clipped per-example gradients",
    DISCRETE: "Poisson-subsampled discrete Gaussian on clipped per-example gradients, in exact integers",
    LAPLACE: "discrete Laplace noise on counts of right and wrong answers (evaluate=dp)",
}
_SUM_NOISE = {
    GAUSSIAN: "floating-point Gaussian noise",
    DISCRETE: "exact discrete Gaussian noise, in whole steps of 2^-32,",
}
_ACCOUNTANTS = {
    "prv": "PRV (Gopi et al. 2021, the upper end of its error interval)",
    "rdp": "Renyi (Mironov et al. 2019)",
}
_COARSE = f"Renyi (Mironov et al. 2019), at integer orders, for more than {MOST_EXACT} different noises or rates"
_RUN = "the rounds of this run (the cost of a message that came twice is in that client's ledger, and not here)"
_ALL_ROWS = "all rows of a client's ledger, of all runs"
SOURCES = {
    "os": "batches, noise, masks of layers that draw and views of images: AES-256-CTR keystreams, each with a 256-bit "
    "key of its own from the client's operating system; none from torch's, numpy's or Python's generators",
    "seeded": "a seed: anybody who knows it can subtract the noise",
}


def statement_of(run: Path) -> dict[str, Any]:
    """Item -> text, or list of texts, of the run in a folder. FileNotFoundError or ValueError if there is none."""
    result = read_result(run)
    config = read_config(run / "config.yaml")
    if config.privacy.unit == "off" or result.epsilon is None:
        raise ValueError(f"{run}: a run with privacy=off: it claims no privacy, so there is nothing to state")
    summary = {
        "run": f"{result.name}, {result.status} after {plural(result.rounds, 'round')}: {run}",
        "private": "yes: all the evidence for it was found" if result.private else "NO",
        "why not": list(result.privacy_reasons),
    }
    if not protects_examples(config):
        return {**summary, **client_level_items(config, result, run)}
    per_client = [
        f"{item}: {said}" for item, said in client_level_items(config, result, run).items() if isinstance(said, str)
    ]
    return {
        **summary,
        **_example_level_items(config, result, run),
        **({"client-level DP": per_client} if result.client_level else {}),
    }


def _example_level_items(config: Config, result: Result, run: Path) -> dict[str, Any]:
    accounts = _accounts(config, run)
    rows = max(accounts.values(), key=lambda own: _epsilon(own, config), default=[])
    alone = result.epsilon_of == "run" or (result.epsilon_of is None and not accounts)
    plan = plan_of(config)
    mechanisms: list[AnyMechanism] = [row.spend.as_mechanism() for row in rows]
    elsewhere = "with each client's owner (`fedq client status STATE-DIR`); this host sees none of them"
    return {
        "unit": UNIT,
        "adjacency": ADJACENCY,
        "adversary": ADVERSARY,
        "epsilon": f"{spent(result.epsilon)} at delta {result.delta:g}, "
        + (ALONE if alone else "the largest of any client's whole ledger"),
        "mu": _mu(mechanisms) if rows else "not known here: it is computed from ledgers, which lie elsewhere",
        "budget": _budgets(config) + ("; an owner's own may be stricter, and is over all runs" if alone else ""),
        "mechanism": _mechanism(rows, plan),
        "sensitivity": f"each example's gradient over all trained values is scaled to at most {plan.clip_norm:g} (L2); "
        "what is not finite counts as zero; the divisor is public, never the true number of examples",
        "sampling": f"each example is in each batch on its own with probability {plan.sample_rate:.4g} (Poisson), "
        "drawn from the client's secret source. Amplification is claimed for this sampling alone, none for the "
        "sampling of clients",
        "composition": f"{_accountant(mechanisms, config.privacy.accountant)}, adaptive, over "
        + (_RUN if alone else _ALL_ROWS)
        + "; noise is calibrated to the most rounds that one client may take part in",
        "randomness": _sources(rows),
        "accounts": f"{plural(len(accounts), 'ledger')}, every one checked" if accounts else elsewhere,
        "after the noise": "quantization, error feedback, codecs, masks, aggregation, export: free post-processing",
        "evaluation": _evaluation(config, result),
        "not covered": [*NOT_COVERED, *([] if config.privacy.noise == "discrete" else [FLOAT_NOISE])],
    }


def client_level_items(config: Config, result: Result, run: Path) -> dict[str, Any]:
    """The items of client-level DP, with a trusted server; {} without it."""
    said = result.client_level
    if not said:
        return {}
    ledger = server_ledger_file(config, run / SERVER_FILES)
    rows = Ledger(ledger, access="read").rows() if ledger.exists() else []
    spends = [row.spend for row in rows]
    counted = charged(spends, clients=config.clients)
    runs = len({spend.run for spend in spends})
    over = (
        "this run" if runs <= 1 else f"the {runs} runs in the server's ledger, each with the most that one client spent"
    )
    sampling = {
        "cyclic": "shuffled round-robin from the public seed: no amplification is claimed",
        "poisson": "each client is in each round by a secret coin (Poisson): amplified, if only models are seen",
    }
    return {
        "unit": said["unit"],
        "adjacency": f"{said['adjacency']}: the same run, except that each update of one client counts as zero",
        "adversary": f"{said['adversary']} (central model: the server sees every update and adds the noise)",
        "epsilon": f"{spent(said['epsilon'])} at delta {said['delta']:g}, of the client that spent most in {over}",
        "mu": _mu(counted) if counted else "not known: the ledger is not here",
        "mechanism": f"{_noise_of(spends, config)} on the sum of clipped updates, {plural(len(rows), 'round')}, "
        f"noise / clip {said['noise_multiplier']:.4g}; {plural(int(said['rounds_charged']), 'round')} at most count "
        "against one",
        "sensitivity": f"each decoded update is scaled to at most {said['clip_norm']:g} (L2)"
        + ("" if said["clip_quantile"] is None else f", moving with the noised quantile {said['clip_quantile']:g}")
        + "; the divisor is the public size of a cohort",
        "sampling": sampling[said["sampling"]],
        "composition": f"{_accountant(counted, said['accountant'])}, of {over}; runs with a ledger of their own are "
        "not counted",
        "randomness": _sources(rows).replace("of each client", "of the server"),
        "after the noise": "server optimizer, quantization, export, scores on the server's test set: post-processing",
        "not covered": [
            f"figures that are the server's own: {', '.join(said['not_covered'])}",
            "the server itself, its disk and the network; whether a client takes part at all",
            NOT_COVERED[1],
            NOT_COVERED[4],
            *([] if config.privacy.noise == "discrete" else [FLOAT_NOISE]),
        ],
    }


def statement_text(statement: dict[str, Any], *, width: int = 110) -> str:
    """The statement as text: one paragraph for each item, in lines of at most `width` characters."""
    lines = []
    for item, said in statement.items():
        texts = said if isinstance(said, list) else [said]
        for number, text in enumerate(texts):
            mark = f"{item + ':':17}" if number == 0 else " " * 17
            dash = "- " if isinstance(said, list) else ""
            lines += wrap(f"{dash}{text}", width, initial_indent=mark, subsequent_indent=" " * (17 + len(dash)))
    return "\n".join(lines)


def _accounts(config: Config, run: Path) -> dict[str, list[Row]]:
    """Client -> all rows of its ledger; {} where no ledger lies with the run. LedgerError if one is broken."""
    found = {}
    for home in sorted(path for path in (run / "clients").glob("*") if path.is_dir()):
        path = ledger_file(config, home, home.name)
        if not path.exists():
            path = home / LEDGER  # a rehearsal collects them in the clients' folders
        if path.exists():
            found[home.name] = Ledger(path, access="read").rows()
    return found


def _epsilon(rows: Sequence[Row], config: Config) -> float:
    return epsilon([row.spend.as_mechanism() for row in rows], config.privacy.target_delta)


def _noise_of(spends: Sequence[Spend], config: Config) -> str:
    """The noise on the sum of all clients' updates, in words."""
    kinds = {spend.mechanism for spend in spends} or {GAUSSIAN if config.privacy.noise == "gaussian" else DISCRETE}
    return " and ".join(_SUM_NOISE[kind] for kind in sorted(kinds))


def _accountant(mechanisms: Sequence[AnyMechanism], name: str) -> str:
    return _COARSE if is_coarse(mechanisms) else _ACCOUNTANTS[name]


def _mu(mechanisms: Sequence[AnyMechanism]) -> str:
    mu = gaussian_mu(mechanisms)
    shown = math.ceil(mu * 1000) / 1000
    return (
        f"{shown:.3f}: at delta {DELTAS[0]:g} to {DELTAS[-1]:g}, in powers of ten, no epsilon of the run is above "
        "that of the Gaussian mechanism of this mu"
    )


def _budgets(config: Config) -> str:
    target = config.privacy.target_epsilon
    stricter = {name: value for name, value in config.privacy.budgets.items() if target is None or value < target}
    every = "every other client" if stricter else "every client"
    common = f"no limit for {every}" if target is None else f"{target:g} for {every}"
    return common + "".join(f", {value:g} for client {name}" for name, value in sorted(stricter.items()))


def _mechanism(rows: Sequence[Row], plan: Any) -> str:
    if not rows:
        noise = f"noise multiplier {plan.noise_multiplier:.4g}, or more where an owner's own budget is stricter"
        counted = "" if plan.evaluation is None else f"; {MECHANISMS[LAPLACE]}"
        return f"{MECHANISMS[plan.mechanism_name]}: {noise}, {plan.steps} steps a participation{counted}"
    kinds: dict[str, tuple[int, set[float]]] = {}
    for row in rows:
        steps, noises = kinds.get(row.spend.mechanism, (0, set()))
        kinds[row.spend.mechanism] = (steps + row.spend.steps, noises | {row.spend.noise_multiplier})
    parts = []
    for kind, (steps, noises) in sorted(kinds.items()):
        over = ", ".join(f"{noise:.4g}" for noise in sorted(noises))
        parts.append(f"{MECHANISMS[kind]}: {plural(steps, 'application')}, noise over clip {over}")
    return "; ".join(parts)


def _sources(rows: Sequence[Row]) -> str:
    sources = sorted({row.spend.noise_source for row in rows})
    return "; ".join(SOURCES[source] for source in sources) or "said in each client's own ledger"


def _evaluation(config: Config, result: Result) -> str:
    if result.accuracy_source == "server_test":
        return "on the server's own test set, which is public or the server's: no client's data are read"
    if result.accuracy_source == "noisy_counts":
        return (
            "by each client's counts of right and wrong answers on examples that it never trains on, with discrete "
            f"Laplace noise of epsilon {config.privacy.evaluation_epsilon:g}, in its ledger; the int8 model is "
            "measured on the server's own test set, if it has one"
        )
    return "not evaluated"
