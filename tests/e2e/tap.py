"""A wire tap for tests: passes bytes on and keeps what clients sent, then reads it message by message."""

import socket
import threading
from contextlib import suppress

import h11
from flwr.app import Message
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents


class Tap:
    """Listens in front of a plain-text SuperLink. `sent`: what each connection carried towards it."""

    def __init__(self, target: int) -> None:
        self._target, self.sent = target, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # the SuperLink has ended; a SuperNode tries again
                    near.close()
                    continue
                kept = bytearray()
                self.sent.append(kept)
                threading.Thread(target=self._pass, args=(near, far, kept), daemon=True).start()
                threading.Thread(target=self._pass, args=(far, near, None), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
        with source, suppress(OSError):  # each socket is closed by the thread that reads it
            while data := source.recv(65536):
                if kept is not None:
                    kept += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def requests(sent):
    """(path, body) of every whole HTTP request of the tapped connections."""
    for kept in sent:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(bytes(kept))
        path, body = "", bytearray()
        while True:
            event = connection.next_event()
            if event in (h11.NEED_DATA, h11.PAUSED):
                if connection.their_state is h11.DONE and connection.our_state is not h11.ERROR:
                    # The answers went another way: tell the parser that there was one.
                    connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
                    continue
                break
            if isinstance(event, h11.Request):
                path, body = event.target.decode(), bytearray()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                yield path, bytes(body)
            elif isinstance(event, h11.ConnectionClosed):
                break


def messages(sent) -> list[Message]:
    """Every Flower message that clients sent, put together from the objects that crossed."""
    objects, roots = {}, []
    for path, body in requests(sent):
        if path.endswith("/push-object"):
            pushed = PushObjectRequest.FromString(body)
            objects[pushed.object_id] = pushed.object_content
        elif path.endswith("/push-messages"):
            roots += [tree.object_id for tree in PushMessagesRequest.FromString(body).message_object_trees]
    return [inflate_object_from_contents(root, dict(objects)) for root in roots]
