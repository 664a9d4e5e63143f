"""The `traces` section of a config: recorded trajectories to train on."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from echo_cli.config.section import AbsolutePath, Fraction, FreeOnResume, NonNegativeFloat, Positive, Section
from echo_cli.errors import EchoError


def _listed(value: Any) -> Any:
    """Return a path or a list of paths as a tuple."""
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value


class TraceSplitConfig(Section):
    """Fractions of the trajectories in the validation and held-out pools; the rest is trained on (traces/corpus.py)."""

    validation: Fraction = 0.1
    heldout: Fraction = 0.2
    near_duplicates: Annotated[Fraction, Field(gt=0)] | None = 0.8
    """Similarity to a training trace from which a held-out trace is not measured: the Jaccard similarity of the word
    5-grams of their observations, estimated by MinHash. None means that only equal observations are not measured."""

    @model_validator(mode="after")
    def _leaves_some(self) -> TraceSplitConfig:
        if self.validation + self.heldout >= 1:
            raise EchoError("traces.split: no trace remains for training", "lower validation or heldout")
        return self


class TracesConfig(Section):
    """Trajectory files to train on, with rollouts or alone; each step takes `per_step` trajectories.

    The trajectories contribute to the env term and, if `imitation_coeff` is above 0, add the cross-entropy of their
    action tokens with that weight.
    """

    path: FreeOnResume[Annotated[tuple[AbsolutePath, ...], BeforeValidator(_listed), Field(min_length=1)]]
    split: TraceSplitConfig = TraceSplitConfig()
    per_step: Positive = 16
    max_tokens: Positive | None = None
    """Length at which a trajectory is truncated, tokens of the policy; None means the model's context length."""
    imitation_coeff: NonNegativeFloat = 0.0
