"""A Flower `ClientApp` over clients. Knows messages and codes; not how a client is built or where it runs.

The client's outermost layer is here: whatever goes wrong inside, a code leaves and the text stays, since Flower
sends the type and text of an uncaught exception, paths and data values included, to the server.
"""

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedq import __version__, codec, wire
from fedq.client import Client


def client_app(client_of: Callable[[Context], Client]) -> ClientApp:
    """A Flower app that answers for the client that `client_of` names; the same on every runtime."""
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        from fedq.privacy import Declined, LedgerError

        client: Client | None = None
        reason, name = "client_error", ""
        try:
            client = client_of(context)
            name = client.identity
            client.check_account()
            told = wire.Hello(client.identity, __version__, codec.FORMATS, client.trainer.layout.digest)
            return _reply(wire.write_hello(told), message)
        except Declined as error:
            reason, name = error.reason, error.identity or name
            _note_declined(client, str(error))
            _tell_operator(f"client {name or '(unnamed)'} refused to take part: {error}")
        except LedgerError as error:
            reason = "ledger"
            _note_declined(client, f"ledger: {error}")
            _tell_operator(f"client {name or '(unnamed)'} refused to take part: {error}")
        except (Exception, SystemExit):
            _tell_operator(traceback.format_exc())
        return _reply(wire.write_refusal(wire.Refusal(0, reason, name)), message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _guarded(message, context, client_of, lambda client, request: client.train(request))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _guarded(message, context, client_of, lambda client, request: client.evaluate(request))

    return app


def _guarded(
    message: Message,
    context: Context,
    client_of: Callable[[Context], Client],
    work: Callable[[Client, wire.Request], wire.Reply],
) -> Message:
    """The reply, or a refusal that holds a code and nothing else, whatever fails and wherever."""
    from fedq.privacy import Declined, LedgerError

    client: Client | None = None
    round, reason, told = -1, "client_error", ""
    try:
        request = wire.read_request(message.content)
        round = request.round  # first: a refusal that names another round is dropped, and its reason with it
        client = client_of(context)
        return _reply(wire.write_reply(work(client, request)), message)
    except Declined as error:
        reason, told = error.reason, str(error)
        _note_declined(client, f"round {round}: {told}")
    except LedgerError as error:
        reason, told = "ledger", str(error)
        _note_declined(client, f"round {round}: ledger: {told}")
    except (wire.MalformedReply, codec.MalformedUpdate):
        reason, told = "bad_request", traceback.format_exc()
    except (Exception, SystemExit):  # a user's code may end the process; Ctrl-C still does
        told = traceback.format_exc()
        if client is not None and client.privacy is not None:
            reason = "declined"  # whether this data makes the code fail is private too, as far as a code can hide it
    with suppress(OSError):  # a full disk must not turn the log's own error into a message
        if client is not None:
            client.state.log(f"round={round} refused: {reason}\n{told}")
        else:
            _tell_operator(told)
    return _reply(wire.write_refusal(wire.Refusal(round, reason)), message)


def _reply(content: RecordDict, message: Message) -> Message:
    """A reply whose envelope follows from the request alone.

    Flower writes into it when it was made and how long it lives, to the microsecond: the time that a step takes
    depends on the batch that was drawn. Said to be made when the request was, it lives as long as the request.
    """
    reply = Message(content, reply_to=message)
    reply.metadata.created_at, reply.metadata.ttl = message.metadata.created_at, message.metadata.ttl
    return reply


def _note_declined(client: Client | None, why: str) -> None:
    """Where the owner looks; a client that could not be built has been noted by whoever declined to build it."""
    with suppress(OSError):
        if client is not None:
            client.note_declined(why)


def _tell_operator(text: str) -> None:
    """On this machine's own terminal or log file: there is no client yet that has a log."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
