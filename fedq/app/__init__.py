"""The two Flower apps: the `ClientApp` and the `ServerApp` of fedq. Knows experiments.

A Flower app directory names `fedq.app:client` and `fedq.app:server` as its components. Each composes its own experiment
on its own machine, from the configs of the bundle and the run's overrides.
"""

from contextlib import AbstractContextManager

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedq.app.answer import Answering, client_app

__all__ = ["client", "client_app", "server"]


def _own_client(context: Context) -> Answering:
    from fedq.app.node import client_of  # each message may start a process, so imports are kept to what it needs

    return client_of(context)


def _note(context: Context, why: str) -> None:
    from fedq.app.node import note

    note(context, why)


def _bounds(context: Context, kind: str) -> AbstractContextManager[object]:
    from fedq.app.node import bounds

    return bounds(context, kind)


client: ClientApp = client_app(_own_client, note=_note, bounds=_bounds)
server = ServerApp()


@server.main()
def _main(grid: Grid, context: Context) -> None:
    from fedq.app.host import serve_run

    serve_run(grid, context)
