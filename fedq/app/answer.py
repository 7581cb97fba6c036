"""A Flower `ClientApp` over clients. Knows messages and codes; not how a client is built or where it runs.

The client's outermost layer is here: whatever goes wrong inside, a code leaves and the text stays, since Flower
sends the type and text of an uncaught exception, paths and data values included, to the server. So the refusal is made
before any work begins, and nothing that happens afterwards can keep it from being returned: no text that cannot be
encoded, no full disk, no recursion without end, no lack of memory.
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
    """What answers for a data owner."""

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
Note = Callable[[Context, str], None]  # for the owner: a request that was refused or failed, and why
Bounds = Callable[[Context, str], AbstractContextManager[object]]  # on the time and memory of a message of that type


def no_bounds(context: Context, kind: str) -> AbstractContextManager[object]:
    """For a simulation, where the person who waits can interrupt."""
    return nullcontext()


def client_app(client_of: ClientOf, *, note: Note | None = None, bounds: Bounds = no_bounds) -> ClientApp:
    """A Flower app that answers for the client that `client_of` names; the same on every runtime.

    `note`: where refusals and failures of every run are noted; None: with the client's files of the run.
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


class _Refused(Exception):  # noqa: N818  a decision, not an error
    """No answer but a code: from a closed set, with the name of the client where it declines a handshake."""

    def __init__(self, reason: str, text: str, identity: str = "") -> None:
        super().__init__(text)
        self.reason, self.text, self.identity = reason, text, identity


class _Guard:
    """Answers one message after the other, whatever happens."""

    def __init__(self, client_of: ClientOf, note: Note | None, bounds: Bounds) -> None:
        self._client_of, self._note, self._bounds = client_of, note, bounds

    def answer(self, message: Message, context: Context, kind: str) -> Message:
        """The reply, or a refusal that holds a code and nothing else."""
        round = _round_of(message, kind)
        fallback = _reply(wire.write_refusal(wire.Refusal(round, "client_error")), message)
        try:
            return _reply(self._content(message, context, kind, round), message)
        except _Refused as refused:
            return _reply(wire.write_refusal(wire.Refusal(round, refused.reason, refused.identity)), message)
        except KeyboardInterrupt:
            raise
        except BaseException:  # out of memory, or too deep a recursion, where the refusal was made
            return fallback

    def _content(self, message: Message, context: Context, kind: str, round: int) -> RecordDict:
        found: list[Answering] = []
        try:
            with self._bounds(context, kind):
                return self._work(message, context, kind, found)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an extension's panic is no Exception, and must not end the process either
            refused = _refusal_of(error, found, kind)
        for record in (self._note_for_the_owner, self._log):
            try:
                record(context, kind, round, refused, found)
            except (Exception, SystemExit):  # what cannot be noted must not change what leaves
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
    """The code of a failure, and the text for the client's own operator."""
    from fedq.privacy import Declined, LedgerError

    name = found[0].identity if found and kind == wire.HELLO else ""
    if isinstance(error, Declined):
        return _Refused(error.reason, str(error), (error.identity or name) if kind == wire.HELLO else "")
    if isinstance(error, LedgerError):
        return _Refused("ledger", f"ledger: {error}", name)
    text = "".join(traceback.format_exception(error))
    if kind != wire.HELLO and isinstance(error, wire.MalformedReply | codec.MalformedUpdate):
        return _Refused("bad_request", text)
    # Whether this data makes the code fail is private too, as far as a code can hide it.
    private = kind != wire.HELLO and bool(found) and found[0].private
    return _Refused("declined" if private else "client_error", text)


def _round_of(message: Message, kind: str) -> int:
    """The round that a request names, -1 where it names none: a refusal of another round would be dropped."""
    if kind == wire.HELLO:
        return 0
    try:
        return wire.read_request(message.content).round
    except (Exception, SystemExit):
        return -1


def _reply(content: RecordDict, message: Message) -> Message:
    """A reply whose envelope follows from the request alone.

    Flower writes into it when it was made and how long it lives, to the microsecond: the time that a step takes
    depends on the batch that was drawn. Said to be made when the request was, it lives as long as the request.
    """
    reply = Message(content, reply_to=message)
    reply.metadata.created_at, reply.metadata.ttl = message.metadata.created_at, message.metadata.ttl
    return reply


def _tell_operator(text: str) -> None:
    """On this machine's own terminal or log file, with what cannot be encoded spelled out."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)
