"""Events of a running deployment as lines of the server's log. Knows text alone.

Flower streams the server's output to a user who follows the run. An event's line is a mark and then one JSON object.
"""

import json
from typing import Any

from fedq.results import strict_json

MARK = "fedq-event "


def line(kind: str, **values: Any) -> str:
    """One event: `row` (a round), `note` (a text), `folder`, `result`, `failed`."""
    # ASCII alone: a separator such as U+2028 would break the line, and another terminal encoding would end the run.
    return MARK + json.dumps(json.loads(strict_json.dumps({"event": kind, **values})))


def parse(text: str) -> dict[str, Any] | None:
    """The event in a line of a log; None if the line holds no event, or only a part of one."""
    at = text.find(MARK)
    if at < 0:
        return None
    try:
        event = strict_json.loads(text[at + len(MARK) :].strip())
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
