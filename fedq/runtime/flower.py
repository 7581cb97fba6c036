"""The one file that touches Flower's private names (flwr is pinned to a minor version for it). Knows no fedq."""

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "deserialized", "enter", "new_context", "serialized"]


def enter(run_id: int = 1, node_id: int = 1) -> None:
    """Say who this process is: Flower's `Message` refuses to be made without it."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = node_id
    TaskIdentity.task_id = 1


def new_context(node_id: int, node_config: dict[str, str | int | float | bool]) -> Context:
    """The context of one simulated node; it lives as long as its node."""
    return Context(run_id=1, node_id=node_id, node_config=node_config, state=RecordDict(), run_config={})


def serialized(message: Message) -> bytes:
    """The message as it would cross a network."""
    data: bytes = message_to_proto(message).SerializeToString()
    return data


def deserialized(data: bytes) -> Message:
    from flwr.proto.message_pb2 import Message as Proto  # generated code without stubs

    return message_from_proto(Proto.FromString(data))
