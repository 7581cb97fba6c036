"""What the live view of a run is told: its headline, its rows, and why clients were lost. Knows configs and rows."""

from fedq.config import Config, public
from fedq.console import Display
from fedq.flower import wire
from fedq.results import RoundRow


class Watch:
    """Shows every row, and says why clients were lost the first time that it happens for a reason."""

    def __init__(self, display: Display) -> None:
        self._display, self._known = display, set[str]()

    def __call__(self, row: RoundRow) -> None:
        for reason in sorted(set(row.reasons) - self._known):
            meaning = {**wire.REFUSALS, **wire.REJECTIONS}.get(reason, "a packet that does not decode")
            self._display.note(f"round {row.round}: {row.reasons[reason]} lost, {reason}: {meaning}")
        self._known |= set(row.reasons)
        self._display.row(row)


def _bits(config: Config) -> str:
    activations = "" if config.quant.activations == "off" else f"A{config.quant.activation_bits}"
    return f"W{config.quant.weight_bits}{activations} QAT"


def headline(config: Config) -> str:
    """What runs, in a line."""
    c = config
    parts = [
        f"{c.clients} clients" if c.fraction == 1 else f"{public.cohort_size(c)} of {c.clients} clients",
        str(c.data.get("_target_", "data")).rpartition(".")[2],
        str(c.model.get("_target_", "model")).rpartition(".")[2],
        "float32 model" if c.quant.name == "off" else _bits(c),
        f"{c.codec.name} packets" if c.downlink.name is None else f"{c.codec.name} up, {c.downlink.name} down",
    ]
    return ", ".join(parts)
