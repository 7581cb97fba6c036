"""The client app that does the work in this process, with everything that it needs imported. Knows no other process."""

from contextlib import suppress

from flwr.app import Context, Message

from fedq.app.answer import client_app, refusal
from fedq.app.node import bounds, client_of, note

__all__ = ["client", "refused"]

client = client_app(client_of, note=note, bounds=bounds)


def refused(message: Message, context: Context, why: str) -> Message:
    """The refusal of a message on which another process had begun to work; the owner's log says why."""
    with suppress(Exception, SystemExit):  # a full disk must not change the reply
        note(context, f"{message.metadata.message_type}: client_error: {why}")
    return refusal(message)
