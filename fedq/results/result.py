"""The result of a run, as one object and one file. Knows numbers and files; not how they were measured."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from fedq.core.durable import write_bytes
from fedq.core.wording import number, one_line, percent, plural, size, spent
from fedq.results import strict_json
from fedq.results.folder import read_model
from fedq.results.rows import RoundRow, read_rounds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AccuracySource = Literal["server_test", "clients", "noisy_counts", "none"]
RunStatus = Literal["finished", "interrupted", "ended", "failed"]
EpsilonOf = Literal["ledgers", "run"]
ALONE = "this run alone, by public numbers; what clients spent before is not included"
INSECURE_LINK = "insecure: the SuperLink was reached without TLS, or without a certificate to know it by"
NOT_IN_JSON = ("history", "arrays", "folder", "elsewhere")


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """One finished, ended or interrupted run. Bytes are sums of the rows of `rounds.jsonl`."""

    name: str
    status: RunStatus
    status_reason: str | None = None  # why the run ended before its last round
    rounds: int  # rounds done, the initial row not counted
    seed: int
    wall_seconds: float

    accuracy: float | None = None  # 0..1, of the fake-quant (or float) model
    accuracy_source: AccuracySource = "none"
    accuracy_error: float | None = None  # standard error of the accuracy, from the noise on the clients' counts alone
    metric: str = "accuracy"  # name of metric_value, if the task is not a classification
    metric_value: float | None = None
    int8_accuracy: float | None = None  # of model.onnx on int8 kernels
    int8_metric_value: float | None = None
    int8_agreement: float | None = None  # 0..1, share of test examples with the fake-quant model's top class
    int8_ops: dict[str, int] = field(default_factory=dict)  # operator type -> count, in the graph that ran
    float_ops: dict[str, int] = field(default_factory=dict)
    int8_speedup: float | None = None  # float32 model's time over the int8 model's: batch 64, one thread, this machine
    int8_profile: dict[str, float] = field(default_factory=dict)  # operator -> share of the int8 model's time

    epsilon: float | None = None  # None: privacy was off
    epsilon_of: EpsilonOf | None = None  # ledgers: the largest epsilon of all clients' ledgers; run: this run alone
    delta: float | None = None
    privacy_unit: str | None = None  # what epsilon protects, e.g. "one example of one client"
    private: bool = False  # computed from evidence, never from the config
    privacy_reasons: list[str] = field(default_factory=list)  # why not private
    client_level: dict[str, Any] = field(default_factory=dict)  # figures of client-level DP; {}: it is off
    reply_fields: list[str] = field(default_factory=list)  # "record.key" of everything that clients sent
    quantized: list[str] = field(default_factory=list)  # for each layer: int8, or float and why

    bytes_up: int
    bytes_down: int
    float32_bytes_up: int  # the same messages under codec=float32
    float32_bytes_down: int
    model_bytes: int | None = None
    int8_model_bytes: int | None = None
    sparsity: float | None = None  # share of zeros among the prunable weights, measured; None: a dense run
    clients_lost: int = 0

    fingerprint: dict[str, Any] = field(default_factory=dict)  # equal bits are promised only for equal fingerprints
    config_hash: str | None = None
    config: dict[str, Any] = field(default_factory=dict)

    history: list[RoundRow] = field(default_factory=list, compare=False)
    arrays: dict[str, np.ndarray] = field(default_factory=dict, compare=False)
    folder: Path | None = field(default=None, compare=False)
    link: str | None = None  # fault of the connection to the server; None: none known
    elsewhere: str | None = field(default=None, compare=False)  # HOST:PATH of a run folder on another machine

    def __post_init__(self) -> None:
        for name, allowed in (("status", get_args(RunStatus)), ("accuracy_source", get_args(AccuracySource))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(allowed)}")

    def to_dict(self) -> dict[str, Any]:
        """The fields of `result.json`, in its order."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in NOT_IN_JSON}

    def write(self, path: Path | str) -> None:
        """Write `result.json` in one atomic step; if `path` is a folder, into that folder."""
        path = Path(path)
        target = path / "result.json" if path.is_dir() else path
        write_bytes(target, (strict_json.dumps(self.to_dict(), indent=2) + "\n").encode())

    def plot(self) -> "Figure":
        """A matplotlib figure of accuracy, bytes against float32 and, with DP, epsilon by round."""
        from fedq.results.curves import figure

        return figure(self)

    def score(self) -> str:
        """'accuracy 93.1 %, int8 92.9 %', or the run's own metric."""
        if self.accuracy is not None:
            int8 = "" if self.int8_accuracy is None else f", int8 {percent(self.int8_accuracy)}"
            return f"accuracy {percent(self.accuracy)}{int8}"
        if self.metric_value is not None:
            int8 = "" if self.int8_metric_value is None else f", int8 {number(self.int8_metric_value)}"
            return f"{one_line(self.metric)} {number(self.metric_value)}{int8}"
        return "not evaluated"

    def facts(self) -> dict[str, str]:
        """The most important facts, for a notebook or a log line: name -> text."""
        why = f": {one_line(self.status_reason)}" if self.status_reason else ""
        up = f"{size(self.bytes_up)} up, {size(self.bytes_down)} down"
        sent, plain = self.bytes_up + self.bytes_down, self.float32_bytes_up + self.float32_bytes_down
        known = {
            "run": f"{one_line(self.name)}, {self.status} after {plural(self.rounds, 'round')}{why}",
            "score": self.score(),
            "privacy": privacy_text(self),
            "traffic": f"{up} ({percent(sent / plain)} of float32)" if plain else up,
        }
        if self.link is not None:
            known["link"] = one_line(self.link)
        where = self.folder or self.elsewhere
        return known | ({"folder": str(where)} if where else {})

    def __repr__(self) -> str:
        return f"Result({'; '.join(self.facts().values())})"

    def _repr_html_(self) -> str:
        cell = '<td style="text-align:left">'
        rows = (f"<tr><th>{key}</th>{cell}{html.escape(text)}</td></tr>" for key, text in self.facts().items())
        return f"<table>{''.join(rows)}</table>"


def privacy_text(result: Result) -> str:
    """Epsilon with its delta and unit, and whether the run is private."""
    if result.epsilon is None:
        return "off: no privacy claimed"
    delta = "" if result.delta is None else f", delta {result.delta:.3g}"
    unit = f" for {one_line(result.privacy_unit)}" if result.privacy_unit else ""
    alone = f" ({ALONE})" if result.epsilon_of == "run" else ""
    return f"epsilon {spent(result.epsilon)}{delta}{unit}{alone}" + ("" if result.private else "; NOT private")


def read_result(folder: Path | str) -> Result:
    """The result in a run folder, with history and arrays if those files exist.

    Raises FileNotFoundError, or ValueError if a file is damaged.
    """
    folder = Path(folder)
    path = folder / "result.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the folder of a run that wrote its result")
    try:
        values = strict_json.loads(path.read_text(encoding="utf-8"))
        result = from_json(values)
    except (ValueError, TypeError) as problem:
        raise ValueError(f"{path}: not a result ({problem}); restore the file or run again") from None
    rounds, model = folder / "rounds.jsonl", folder / "model.safetensors"
    return replace(
        result,
        history=read_rounds(rounds) if rounds.is_file() else [],
        arrays=read_model(model) if model.is_file() else {},
        folder=folder,
    )


def read_summary(path: Path) -> dict[str, Any] | None:
    """The fields of one `result.json`; None if the file is damaged or is not a result."""
    try:
        values = strict_json.loads(path.read_text(encoding="utf-8"))
        from_json(values)
    except (OSError, ValueError, TypeError):
        return None
    return dict(values)


def from_json(values: Any) -> Result:
    """The result from the fields of `result.json`; ValueError or TypeError if they are not a result."""
    if not isinstance(values, Mapping):
        raise ValueError(f"it holds a {type(values).__name__}, not an object")
    # Unknown keys are ignored, so that this fedq can read results of a later one.
    known = {f.name for f in fields(Result)} - set(NOT_IN_JSON)
    return Result(**{key: value for key, value in values.items() if key in known})


def save_curves(result: Result, path: Path | str) -> None:
    """Write `result.plot()` as a PNG in one atomic step."""
    from fedq.results.curves import figure, png

    write_bytes(Path(path), png(figure(result)))
