"""Divides a cohort among processes by expected seconds, longest first. Knows names and seconds; not processes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import median


class Clock:
    """Times the clients that a process trains one after the other; it is called after each reply."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        self._times = [time.perf_counter()]

    def __call__(self, done: int, expected: int) -> None:
        self._times.append(time.perf_counter())

    def seconds(self, clients: Iterable[str]) -> dict[str, float]:
        """Client -> seconds since the reply before its own; `clients` in the order of their replies."""
        spans = (after - before for before, after in pairwise(self._times))
        return dict(zip(clients, spans, strict=False))


class Shares:
    """Which process trains which client. Learns from earlier rounds how long each client takes.

    `sizes`: client -> number of examples, by which the time of a client that never took part is estimated.
    `stay`: a client remains with its first process, which holds what it keeps between rounds, such as a residual.
    """

    def __init__(self, sizes: Mapping[str, int], *, processes: int, stay: bool) -> None:
        self._sizes, self._processes, self._stay = sizes, processes, stay
        self._seconds: dict[str, float] = {}  # the shortest time of each client: later ones may wait for other work
        self._home: dict[str, int] = {}

    def divide(self, clients: Iterable[str], ready: Sequence[int]) -> list[list[str]]:
        """For each process its clients, the longest first.

        Only processes in `ready` get new clients, except where all clients take part at once and stay: then those that
        are not ready yet would never get any.
        """
        expected = self._expected(clients)
        shares: list[list[str]] = [[] for _ in range(self._processes)]
        load = dict.fromkeys(range(self._processes), 0.0)
        open_to = list(load) if self._stay and len(expected) == len(self._sizes) else list(ready)
        for client in sorted(expected, key=lambda name: (-expected[name], name)):
            process = self._home.get(client)
            if process is None:
                process = min(open_to, key=lambda number: (load[number], number))
                if self._stay:
                    self._home[client] = process
            shares[process].append(client)
            load[process] += expected[client]
        return shares

    def learn(self, seconds: Mapping[str, float]) -> None:
        """Note how long each client took."""
        for client, taken in seconds.items():
            self._seconds[client] = min(taken, self._seconds.get(client, taken))

    def _expected(self, clients: Iterable[str]) -> dict[str, float]:
        """Client -> seconds; before any client was timed, examples."""
        rates = [taken / max(self._sizes[client], 1) for client, taken in self._seconds.items()]
        rate = median(rates) if rates else 1.0
        return {client: self._seconds.get(client, self._sizes[client] * rate) for client in clients}
