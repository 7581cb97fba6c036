"""Which options of `QuantizedFedAvg` do not go together, said before a run. Knows options; not what they do."""

from collections.abc import Mapping
from typing import Any

from fedq.codec import Layout


def check_layout(layout: Any, *, feedback: bool, flower: Mapping[str, Any]) -> None:
    """ValueError for what belongs to another app's server, where fedq's own clients answer."""
    if not isinstance(layout, Layout):
        raise ValueError(f"layout={layout!r}: must be a fedq.codec.Layout, or left out in another app's server")
    if flower or feedback:
        named = ", ".join([*flower, *(["feedback"] if feedback else [])])
        raise ValueError(f"{named}: with a layout fedq's own client answers; set fraction, min_clients or its config")


def check_together(
    *, guest: bool, downlink_kind: str, pruning: object, client_level: object, aggregate: object
) -> None:
    """ValueError for two options that exclude each other. `guest`: the clients are another app's."""
    if guest and client_level is not None:
        raise ValueError("client_level needs a layout: another app's own metrics are not covered by its noise")
    if guest and pruning is not None:
        raise ValueError("pruning needs a layout: another app's clients know no masks; run fedq's own client")
    if client_level is not None and aggregate is not None:
        raise ValueError("aggregate with client_level: the noise is for a sum of clipped updates; use the mean")
    if downlink_kind == "weights":
        return
    if guest:
        raise ValueError("downlink.kind=delta needs a layout: another app's clients keep no weights; use weights")
    if pruning is not None:
        raise ValueError("downlink.kind=delta with pruning: changes are against values that are gone; use weights")
    if client_level is not None:
        raise ValueError("downlink.kind=delta with client_level: it shows whose update was accepted; use weights")
