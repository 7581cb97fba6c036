"""torch's compiler is loaded where something is compiled, and nowhere else; whoever compiles gets the real one."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fedq

pytestmark = pytest.mark.integration

DYNAMO = "torch._dynamo"


def fresh(code):
    """What a new process prints: this one has long loaded what a test before it wanted."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fedq.__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_client_that_trains_without_privacy_never_loads_the_compiler():
    loaded = fresh("""
        import sys, numpy as np
        from torch import nn
        from fedq import codec
        from fedq.flower import wire
        from fedq.client import Client, ClientState
        from fedq.data import Examples
        from fedq.training import Recipe, Trainer, layout_of, read_vector

        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        recipe = Recipe(batch_size=4, optimizer="SGD", lr=0.1, rounds=1, epochs=1)
        trainer = Trainer(model, layout_of(model), recipe)
        examples = Examples(np.eye(8, 3, dtype=np.float32), np.arange(8) % 2)
        client = Client("0", trainer, codec.Int8(), lambda: examples, ClientState(), seed=0)
        weights = read_vector(model, trainer.layout)
        packet = codec.encode(weights, "float32", layout=trainer.layout, kind="weights", round=1)
        reply = client.train(wire.Request(1, -1, {"model": packet}))
        print(reply.num_examples, [m for m in sys.modules if m.startswith("torch._dynamo")])
    """)
    assert loaded == ["8 []"]


@pytest.mark.slow
def test_without_it_torch_does_load_the_compiler():
    """Else there would be nothing to keep out, and this module could go."""
    loaded = fresh("""
        import sys, torch
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
        print("torch._dynamo" in sys.modules)
    """)
    assert loaded == ["True"]


@pytest.mark.slow
def test_a_compiled_model_trains_after_a_step_without_the_compiler():
    """The optimizer was made, and stepped, beside a stand-in; then a user compiles for real."""
    values = fresh("""
        import sys, torch
        from fedq.core.compiler import without_compiler

        weight = torch.nn.Parameter(torch.zeros(2))
        with without_compiler():
            optimizer = torch.optim.SGD([weight], lr=0.5)
            weight.grad = torch.ones(2)
            optimizer.step()
        print(weight.tolist(), "torch._dynamo" in sys.modules, "_dynamo" in vars(torch))

        seen = []

        def backend(graph, inputs):
            seen.append(len(inputs))
            return graph.forward

        model = torch.compile(lambda x: (x * weight).sum(), backend=backend)
        optimizer.zero_grad()
        model(torch.ones(2)).backward()
        with without_compiler():
            optimizer.step()
        optimizer.step()
        print(weight.tolist(), len(seen), type(sys.modules["torch._dynamo"].OptimizedModule).__name__)
    """)
    # w = 0 - 0.5 * 1, twice more with the gradient 1 of (x * w).sum().
    assert values == ["[-0.5, -0.5] False False", "[-1.5, -1.5] 1 type"]


@pytest.mark.slow
def test_a_step_inside_a_compiled_function_is_left_alone_by_the_compiler():
    values = fresh("""
        import torch
        from fedq.core.compiler import without_compiler

        weight = torch.nn.Parameter(torch.zeros(2))
        with without_compiler():
            optimizer = torch.optim.SGD([weight], lr=0.5)

        def step(x):
            optimizer.zero_grad()
            (x * weight).sum().backward()
            optimizer.step()
            return weight.sum()

        print(torch.compile(step, backend="eager")(torch.ones(2)).item())
    """)
    assert values == ["-1.0"]


def test_inside_another_use_nothing_changes_hands():
    values = fresh("""
        import sys
        from fedq.core.compiler import without_compiler
        with without_compiler():
            outer = sys.modules["torch._dynamo"]
            with without_compiler():
                print(sys.modules["torch._dynamo"] is outer)
            print(sys.modules["torch._dynamo"] is outer)
        print("torch._dynamo" in sys.modules)
    """)
    assert values == ["True", "True", "False"]


@pytest.mark.slow
def test_an_error_inside_leaves_no_stand_in_behind():
    values = fresh("""
        import sys, torch
        from fedq.core.compiler import without_compiler
        try:
            with without_compiler():
                raise KeyError("x")
        except KeyError:
            print("torch._dynamo" in sys.modules, "_dynamo" in vars(torch))
        import torch._dynamo
        print(hasattr(torch._dynamo, "OptimizedModule"))
    """)
    assert values == ["False False", "True"]


def test_once_the_compiler_is_loaded_it_stays_the_real_one():
    import torch._dynamo

    from fedq.core.compiler import without_compiler

    before = sys.modules[DYNAMO]
    with without_compiler():
        assert sys.modules[DYNAMO] is before
        assert hasattr(torch._dynamo, "OptimizedModule")
    assert sys.modules[DYNAMO] is before


OPTIMIZERS = """
    import sys, torch
    from fedq.core.compiler import without_compiler

    def stepped(kind):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3) / 7)
        optimizer = kind([weight], lr=0.1)
        for step in range(3):
            weight.grad = torch.sin(weight.detach() * (step + 1))
            optimizer.step()
        return weight.detach().numpy().tobytes().hex()

    for name in sorted(n for n in dir(torch.optim) if n[:1].isupper()):
        kind = getattr(torch.optim, name)
        if kind is torch.optim.Optimizer or name in ("LBFGS", "SparseAdam"):
            continue
        if WITHOUT:
            with without_compiler():
                print(name, stepped(kind))
        else:
            print(name, stepped(kind))
    print("torch._dynamo" in sys.modules)
"""


@pytest.fixture(scope="module")
def with_and_without():
    return [fresh(f"WITHOUT = {without}\n{textwrap.dedent(OPTIMIZERS)}") for without in (False, True)]


@pytest.mark.slow
def test_every_optimizer_of_torch_steps_to_the_same_bits_without_the_compiler(with_and_without):
    plain, without = with_and_without
    assert len(plain) > 10
    assert without[:-1] == plain[:-1]
    assert (plain[-1], without[-1]) == ("True", "False")
