"""Subjects to audit: a model of some kind under some noise, with a bug planted or with none."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedq import models
from fedq.audit import Audit, Effort, Subject, audit_subject
from fedq.codec import Int8
from fedq.privacy import DPPlan
from fedq.quant import enable_per_example_gradients, register_grad_samplers
from fedq.training import Recipe, Trainer, Views, layout_of, read_vector
from tests.audit.bugs import NONE, Bug, Observer

ROUNDS = 2


@dataclass(frozen=True)
class Setting:
    """The mechanism and the kind of model that are audited."""

    noise: str = "discrete"
    sample_rate: float = 0.5
    model: str = "mlp"

    def plan(self, calibrate) -> DPPlan:
        """Noise for epsilon 8 over `ROUNDS` rounds of two steps."""
        steps, delta = 2, 1e-5
        asked = {"delta": delta, "sample_rate": self.sample_rate, "accountant": "rdp"}
        return DPPlan(
            noise_multiplier=calibrate(target_epsilon=8.0, steps=ROUNDS * steps, **asked),
            clip_norm=0.5,
            sample_rate=self.sample_rate,
            steps=steps,
            nominal_examples=8,
            target_epsilon=8.0,
            delta=delta,
            accountant="rdp",
            noise=self.noise,
        )


SETTINGS = {
    "discrete": Setting(),  # the default mechanism
    "discrete, dropout": Setting(model="dropout"),
    "discrete, fixed front": Setting(model="front"),
    "discrete, augmentation": Setting(model="views"),
    "discrete, full batches": Setting(sample_rate=1.0),
    "gaussian": Setting(noise="gaussian"),
}


def model_of(kind: str) -> nn.Sequential:
    """A small model over images of 8x8; an `Observer` is in each with every bug, and with none."""
    torch.manual_seed(0)
    if kind == "front":
        layers = dict(models.scatter_linear((1, 8, 8), 10).named_children())
        model = nn.Sequential(*layers.values())
        model.insert(len(model) - 1, Observer())
    else:
        dropout = [nn.Dropout(0.5)] if kind == "dropout" else []
        model = nn.Sequential(nn.Flatten(), Observer(), nn.Linear(64, 16), nn.Tanh(), *dropout, nn.Linear(16, 10))
    register_grad_samplers()
    enable_per_example_gradients(model)
    return model


def subject_of(setting: Setting, bug: Bug, folder: Path) -> Subject:
    model = model_of(bug.model or setting.model)
    views = Views(2) if (bug.model or setting.model) == "views" else None
    layout = layout_of(model)
    recipe = Recipe(batch_size=8, optimizer="SGD", lr=0.1, rounds=1, steps=2, views=views)
    return Subject(
        setting.plan(bug.calibrate),
        Trainer(model, layout, recipe, input_shape=(1, 8, 8), mechanism=bug.mechanism),
        Int8(),
        read_vector(model, layout),
        bug.make_random,
        prepare=bug.prepare,
        client=bug.client,
        folder=folder,
    )


def audited(setting: Setting, bug: Bug, examples, folder: Path, *, seed: int, effort: Effort) -> Audit:
    """One whole audit of a subject."""
    subject = subject_of(setting, bug, folder)
    checks, _ = audit_subject(subject, examples, effort, rounds=ROUNDS, first_seed=seed, tell=lambda text: None)
    return Audit("test", checks)


def applies(bug: Bug, setting: Setting) -> bool:
    """Whether it is a bug of the setting at all."""
    sampled = setting.sample_rate < 1 or not bug.subsampled
    return sampled and (bug.model is None or bug.model == setting.model)


__all__ = ["NONE", "ROUNDS", "SETTINGS", "Setting", "applies", "audited", "model_of", "subject_of"]
