"""The two Flower apps: the `ClientApp` and the `ServerApp` of fedq. Imports neither torch nor experiments.

A Flower app directory names `fedq.app:client` and `fedq.app:server` as its components. Each composes its own experiment
on its own machine, from the configs of the bundle and the run's overrides. Flower starts a process for each message to
a client, so this module imports little: where a warm process answers the message, nothing else is needed.
"""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedq.app.warm.handover import LostError, handed_over, start_if_none

__all__ = ["client", "server"]

client = ClientApp()
server = ServerApp()


@client.query("hello")
def _hello(message: Message, context: Context) -> Message:
    return _answer(message, context)


@client.train()
def _train(message: Message, context: Context) -> Message:
    return _answer(message, context)


@client.evaluate()
def _evaluate(message: Message, context: Context) -> Message:
    return _answer(message, context)


def _answer(message: Message, context: Context) -> Message:
    """The reply of a warm process, if there is one; else of this process."""
    try:
        reply = handed_over(message, context)
    except LostError as lost:
        from fedq.app.direct import refused

        return refused(message, context, str(lost))
    if reply is not None:
        return reply
    from fedq.app.direct import client as own

    reply = own(message, context)
    start_if_none(context)  # after the work, which it would slow down
    return reply


@server.main()
def _main(grid: Grid, context: Context) -> None:
    from fedq.app.host import serve_run

    serve_run(grid, context)
