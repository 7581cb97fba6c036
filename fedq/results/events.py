"""What a run tells while it goes on, as lines of a log that another machine follows. Knows text; not who reads it.

Flower carries the server's output to whoever follows the run. A line of ours begins with a mark, then one JSON object.
"""

import json
from typing import Any

from fedq.results import strict_json

MARK = "fedq-event "


def line(kind: str, **values: Any) -> str:
    """One event: `row` (a round), `note` (a text), `folder`, `result`, `failed`."""
    # ASCII alone: a separator such as U+2028 would tear the line, and a terminal of another encoding end the run.
    return MARK + json.dumps(json.loads(strict_json.dumps({"event": kind, **values})))


def parse(text: str) -> dict[str, Any] | None:
    """The event of a line of a log; None where the line is somebody else's, or torn."""
    at = text.find(MARK)
    if at < 0:
        return None
    try:
        event = strict_json.loads(text[at + len(MARK) :].strip())
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None
