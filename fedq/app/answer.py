"""The Flower `ClientApp` of fedq. Knows messages and reason codes; not how a client is built or where it runs.

This is the outermost layer of a client: for every failure a code leaves, and the text stays. Flower would send the type
and text of an uncaught exception, with paths and data values, to the server. So the refusal is built before any work
begins, and nothing can prevent its return afterwards: neither a text that cannot be encoded, nor a full disk, endless
recursion or a lack of memory.
"""

import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedq import __version__, codec
from fedq.client import ClientState
from fedq.flower import wire


class Answering(Protocol):
    """A client, or a stand-in for one, that answers messages for a data owner."""

    identity: str
    state: ClientState

    @property
    def layout_digest(self) -> bytes: ...
    @property
    def private(self) -> bool: ...
    def check_account(self) -> None: ...
    def note_declined(self, why: str) -> None: ...
    def train(self, request: wire.Request) -> wire.Reply: ...
    def evaluate(self, request: wire.Request) -> wire.Reply: ...


ClientOf = Callable[[Context], Answering]
Note = Callable[[Context, str], None]  # records for the owner a request that was refused or failed, and why
Bounds = Callable[[Context, str], AbstractContextManager[object]]  # on the time and memory of a message of that type


def no_bounds(context: Context, kind: str) -> AbstractContextManager[object]:
    """No limits, for a simulation, which its user can interrupt."""
    return nullcontext()


def client_app(client_of: ClientOf, *, note: Note | None = None, bounds: Bounds = no_bounds) -> ClientApp:
    """A Flower app that answers messages for the client that `client_of` returns; the same on every runtime.

    `note`: records refusals and failures of all runs; None: they go to the client's files of the run.
    """
    app = ClientApp()
    guard = _Guard(client_of, note, bounds)

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        return guard.answer(message, context, wire.HELLO)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return guard.answer(message, context, wire.TRAIN)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return guard.answer(message, context, wire.EVALUATE)

    return app


def refusal(message: Message) -> Message:
    """A refusal of the message with the code `client_error`, for a failure without any other answer."""
    round = _round_of(message, message.metadata.message_type)
    return _reply(wire.write_refusal(wire.Refusal(round, "client_error")), message)


class _Refused(Exception):  # noqa: N818  a decision, not an error
    """A refusal: a code from a closed set, and the client's name if it declines a handshake."""

    def __init__(self, reason: str, text: str, identity: str = "") -> None:
        super().__init__(text)
        self.reason, self.text, self.identity = reason, text, identity


class _Guard:
    """Answers messages, and returns a refusal for every failure."""

    def __init__(self, client_of: ClientOf, note: Note | None, bounds: Bounds) -> None:
        self._client_of, self._note, self._bounds = client_of, note, bounds

    def answer(self, message: Message, context: Context, kind: str) -> Message:
        """The reply, or a refusal with a code alone."""
        round, fallback = _round_of(message, kind), refusal(message)
        try:
            return _reply(self._content(message, context, kind, round), message)
        except _Refused as refused:
            return _reply(wire.write_refusal(wire.Refusal(round, refused.reason, refused.identity)), message)
        except KeyboardInterrupt:
            raise
        except BaseException:  # no memory, or too deep a recursion, while the refusal was built
            return fallback

    def _content(self, message: Message, context: Context, kind: str, round: int) -> RecordDict:
        found: list[Answering] = []
        try:
            with self._bounds(context, kind):
                return self._work(message, context, kind, found)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a native extension's panic is not an Exception, and must not end the process
            refused = _refusal_of(error, found, kind)
        for record in (self._note_for_the_owner, self._log):
            try:
                record(context, kind, round, refused, found)
            except (Exception, SystemExit):  # a failure to record must not change the reply
                continue
        raise refused from None

    def _work(self, message: Message, context: Context, kind: str, found: list[Answering]) -> RecordDict:
        if kind == wire.HELLO:
            found.append(client := self._client_of(context))
            client.check_account()
            return wire.write_hello(wire.Hello(client.identity, __version__, codec.FORMATS, client.layout_digest))
        request = wire.read_request(message.content)
        found.append(client := self._client_of(context))
        return wire.write_reply(client.train(request) if kind == wire.TRAIN else client.evaluate(request))

    def _note_for_the_owner(
        self, context: Context, kind: str, round: int, refused: _Refused, found: list[Answering]
    ) -> None:
        phase = "hello" if kind == wire.HELLO else f"{kind}, round {round}"
        lines = refused.text.strip().splitlines() or [""]
        why = f"{phase}: {refused.reason}: {lines[-1].removeprefix(f'{refused.reason}: ')}"
        if self._note is not None:
            self._note(context, why)
        elif found:
            found[0].note_declined(why)

    def _log(self, context: Context, kind: str, round: int, refused: _Refused, found: list[Answering]) -> None:
        if kind != wire.HELLO and found:
            found[0].state.log(f"round={round} refused: {refused.reason}\n{refused.text}")
        elif refused.reason != "client_error" and (name := refused.identity or (found[0].identity if found else "")):
            _tell_operator(f"client {name} refused to take part: {refused.text}")
        else:
            _tell_operator(refused.text)


def _refusal_of(error: BaseException, found: list[Answering], kind: str) -> _Refused:
    """The code of a failure, with the text for the client's own operator."""
    from fedq.privacy import Declined, LedgerError

    name = found[0].identity if found and kind == wire.HELLO else ""
    if isinstance(error, Declined):
        return _Refused(error.reason, str(error), (error.identity or name) if kind == wire.HELLO else "")
    if isinstance(error, LedgerError):
        return _Refused("ledger", f"ledger: {error}", name)
    text = "".join(traceback.format_exception(error))
    if kind != wire.HELLO and isinstance(error, wire.MalformedReply | codec.MalformedUpdate):
        return _Refused("bad_request", text)
    # Whether the data make the code fail is private too, as far as one code for all failures can hide it.
    private = kind != wire.HELLO and bool(found) and found[0].private
    return _Refused("declined" if private else "client_error", text)


def _round_of(message: Message, kind: str) -> int:
    """The round in a request, or -1. The server would drop a refusal for another round."""
    if kind == wire.HELLO:
        return 0
    try:
        return wire.read_request(message.content).round
    except (Exception, SystemExit):
        return -1


def _reply(content: RecordDict, message: Message) -> Message:
    """A reply whose metadata depend on the request alone.

    Flower stores the creation time and the lifetime of a message, in microseconds. They would reveal the time of a
    step, which depends on the secret batch. So both are copied from the request.
    """
    reply = Message(content, reply_to=message)
    reply.metadata.created_at, reply.metadata.ttl = message.metadata.created_at, message.metadata.ttl
    return reply


def _tell_operator(text: str) -> None:
    """Print on this machine's stderr, with escapes for characters that cannot be encoded."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
