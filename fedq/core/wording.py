"""Format numbers and untrusted text for people. Does not know where they are shown."""

import math
import unicodedata
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal

NONE = "-"


def percent(share: float | None, *, digits: int = 1) -> str:
    """0.931 -> '93.1 %'."""
    return NONE if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f} %"


def number(value: float | None) -> str:
    """Four significant digits: 0.24361 -> '0.2436', 12345.6 -> '1.235e+04'."""
    return NONE if value is None or not math.isfinite(value) else f"{value:.4g}"


def fixed(value: float | None) -> str:
    """Three decimals if the value has them, else an exponent, so that a column of losses is aligned."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.1e}"


def spent(epsilon: float | None) -> str:
    """Two decimals, rounded up: a privacy loss is never shown smaller than it is."""
    if epsilon is None or math.isnan(epsilon):
        return NONE
    if math.isinf(epsilon):
        return "infinite"
    return str(Decimal(repr(float(epsilon))).quantize(Decimal("0.01"), rounding=ROUND_CEILING))


def size(num_bytes: int | None) -> str:
    """Decimal units, as for networks and disks: 1234567 -> '1.23 MB'."""
    if num_bytes is None:
        return NONE
    if abs(num_bytes) < 1000:
        return f"{num_bytes} B"
    amount = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        amount /= 1000
        if abs(amount) < 999.5 or unit == "PB":
            break
    # Three digits: 9.994 prints as 9.99, 9.996 as 10.0, 99.96 as 100.
    digits = 2 if abs(amount) < 9.995 else 1 if abs(amount) < 99.95 else 0
    return f"{amount:.{digits}f} {unit}"


def duration(seconds: float | None) -> str:
    """'0.31 s', '4.2 s', '41 s', '3 min 07 s', '2 h 05 min'."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 59.5:
        digits = 2 if seconds < 0.995 else 1 if seconds < 9.95 else 0
        return f"{seconds:.{digits}f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """'0:41', '3:07', '2:05:09': for a running clock."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def plural(count: int, noun: str) -> str:
    """'1 round', '1,200 rounds'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def counts(of: Mapping[str, int], *, empty: str = "none") -> str:
    """{'QGemm': 2, 'QLinearConv': 1} -> '2 QGemm, 1 QLinearConv'."""
    return ", ".join(f"{count} {one_line(name)}" for name, count in of.items()) or empty


def shares(of: Mapping[str, float]) -> str:
    """{'Tanh': 0.5, 'QGemm': 0.123} -> '50 % Tanh, 12 % QGemm'."""
    return ", ".join(f"{percent(share, digits=0)} {one_line(name)}" for name, share in of.items()) or "none"


def times(ratio: float | None) -> str:
    """0.618 -> '0.62 times'."""
    return NONE if ratio is None or not math.isfinite(ratio) else f"{ratio:.2f} times"


def one_line(text: str, *, limit: int = 500) -> str:
    """Make untrusted text safe: a client's id cannot move the cursor, change colours or forge a line."""
    shown = "".join(c if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029" else _escape(c) for c in text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
