"""The two apps: a Flower `ClientApp` over clients, and the server's whole job. Knows experiments.

`client` and `server` are what a Flower app directory names as its components, `fedq.app:client` and `fedq.app:server`:
each composes its own experiment, from the configs of the bundle and the run's overrides, on its own machine.
"""

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedq.app.answer import client_app
from fedq.client import Client

__all__ = ["client", "client_app", "server"]


def _own_client(context: Context) -> Client:
    from fedq.app.node import client_of  # each message may start a process: only what it needs is imported

    return client_of(context)


client: ClientApp = client_app(_own_client)
server = ServerApp()


@server.main()
def _main(grid: Grid, context: Context) -> None:
    from fedq.app.host import serve_run

    serve_run(grid, context)
