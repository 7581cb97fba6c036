"""A worker process: builds the experiment from overrides, trains its part of each cohort, answers with a partial sum;
and computes its part of an evaluation.

python -m fedq.runtime.worker      reads frames on stdin, writes frames on stdout; ends when stdin does
"""

import os
import signal
import sys
from pathlib import Path


def main() -> None:
    frames_in, frames_out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a user's model must not print between frames
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run's process decides
    from fedq.runtime.frames import read_frame, write_frame

    setup = read_frame(frames_in)
    if setup is None:
        return
    sys.path[:] = setup[0]["path"]
    import numpy as np

    from fedq.config import compose
    from fedq.experiment import build
    from fedq.runtime.local import in_process
    from fedq.runtime.shares import Clock
    from fedq.server import Broadcast
    from fedq.training.numerics import one_thread

    overlay = setup[0]["overlay"]
    with one_thread():
        experiment = build(compose(setup[0]["overrides"], overlay=Path(overlay) if overlay else None))
        clock = Clock()
        write_frame(frames_out, {})  # ready
        named = read_frame(frames_in)
        if named is None:
            return
        link = in_process(experiment, experiment.strategy(), Path(named[0]["folder"]), replied=clock)
        while (frame := read_frame(frames_in)) is not None:
            head, blobs = frame
            if head["task"] == "outputs":
                weights, (start, end) = np.frombuffer(blobs["weights"], np.float32), head["range"]
                inputs = experiment.examples(head["part"]).inputs[start:end]
                outputs = experiment.trainer.outputs(weights, inputs).numpy()
                write_frame(frames_out, {"shape": outputs.shape}, {"outputs": outputs.tobytes()})
                continue
            broadcast = Broadcast.from_frame(head, blobs)
            clock.start()
            total = link.gather(head["round"], broadcast, head["accepted"], task=head["task"])
            write_frame(frames_out, {"seconds": clock.seconds(head["accepted"])}, {"total": total.to_bytes()})


if __name__ == "__main__":
    main()
