"""The two apps: a Flower `ClientApp` over clients, and the server's whole job. Knows experiments.

`client` and `server` are what a Flower app directory names as its components, `fedq.app:client` and `fedq.app:server`:
each composes its own experiment, from the configs of the bundle and the run's overrides, on its own machine.
"""

from contextlib import AbstractContextManager

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedq.app.answer import Answering, client_app

__all__ = ["client", "client_app", "server"]


def _own_client(context: Context) -> Answering:
    from fedq.app.node import client_of  # each message may start a process: only what it needs is imported

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
