"""One client's local work in one round, as its algorithm asks for it: train, and encode what is sent.

Depends on the trainer and the codec; does not know Flower, files or which algorithm it serves.
"""

from dataclasses import dataclass, field

from fedq import codec as packets
from fedq.algorithms import Correction, State, Vector
from fedq.core.randomness import generator, key64
from fedq.data import Examples
from fedq.training import Fitted, PrivateFit, Trainer


@dataclass
class LocalTask:
    """Trains from `weights` and encodes packets. Fulfils `fedq.algorithms.Task`.

    `masked`: which weights are sent; `residual`: what compression lost of earlier updates, with error feedback.
    """

    trainer: Trainer
    codec: packets.Codec
    weights: Vector
    received: State
    examples: Examples
    masked: packets.MaskedLayout
    base: bytes  # digest of the weights as they were sent
    round: int
    seed: int
    identity: str
    private: PrivateFit | None = None
    residual: Vector | None = None
    sent: dict[str, bytes] = field(default_factory=dict, init=False)  # name -> packet
    lost: Vector | None = field(default=None, init=False)  # of the update, with error feedback
    fitted: Fitted | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._batches = generator(self.seed, "batches", self.round, self.identity)

    @property
    def step_size(self) -> float:
        """Learning rate times the number of optimizer steps; under DP the plan says how many."""
        recipe = self.trainer.recipe
        steps = recipe.num_steps(len(self.examples)) if self.private is None else self.private.plan.steps
        return recipe.lr_in(self.round) * steps

    def fit(self, correction: Correction | None = None) -> Vector:
        """Train; under DP once, since the ledger paid for one fit."""
        if self.private is not None and self.fitted is not None:
            raise RuntimeError("an algorithm may train once in a round under DP: the ledger pays for one fit")
        self.fitted = self.trainer.fit(  # under DP the spend is written, and noise is added, in here
            self.weights,
            self.examples,
            round=self.round,
            batches=self._batches,
            torch_seed=key64(self.seed, "torch", self.round, self.identity),
            private=self.private,
            kept=self.masked.mask,
            correction=correction,
        )
        return self.fitted.vector

    def send(self, name: str, vector: Vector) -> None:
        """Encode a packet of the reply: `vector`, float32, shape (layout.size,), and what earlier updates lost."""
        codec = packets.packet_codec(name, self.codec)
        if codec.error_feedback and self.residual is not None:
            vector = vector + self.residual
        sent = self.masked.gather(vector)  # what was lost of a weight that is pruned since is lost for good
        self.sent[name] = packets.encode(  # post-processing: costs no epsilon
            sent,
            codec,
            layout=self.masked.layout,
            kind="delta",
            round=self.round,
            base=self.base,
            key=key64(self.seed, name, self.round, self.identity),
        )
        if codec.error_feedback:
            self.lost = self.masked.scatter(sent - packets.decode(self.sent[name], self.masked.layout))

    def decoded(self, name: str) -> Vector:
        """What the server will decode, float32, shape (layout.size,); 0.0 where a weight is pruned."""
        return self.masked.scatter(packets.decode(self.sent[name], self.masked.layout))
