"""A LoRA adapter at a Tinker service: forward and backward passes, optimizer steps, and its stored states."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from echo_cli.errors import EchoError
from echo_cli.models.tinker.datum import Datum, Floats
from echo_cli.models.tinker.service import Service


class Adapter:
    """An adapter that a session of `service` trains; `client` is the SDK's training client."""

    def __init__(self, service: Service, client: Any) -> None:
        self.service, self.client = service, client
        self._types = service.sdk.types
        # A resumed run must not reuse its earlier names, nor a repeated request its first one.
        self._run, self._count = secrets.token_hex(4), 0

    @classmethod
    def new(cls, service: Service, base_model: str, rank: int, seed: int) -> Adapter:
        """Create a fresh adapter, which does not change the base's output at first."""
        return cls(service, service.new_adapter(base_model, rank, seed))

    def forward(self, sequences: Sequence[Datum]) -> list[Floats]:
        """Return the logprobs of the targets of each sequence, nats, at temperature 1."""
        data = [self._datum(Datum(of.input_ids, of.target_ids)) for of in sequences]
        output = self.service.call("compute logprobs", lambda: self.client.forward(data, "cross_entropy").result())
        return self._logprobs(sequences, output)

    def has_loss(self, sequences: Sequence[Datum], loss: str) -> bool:
        """Return whether the service knows a loss."""
        data = [self._datum(of) for of in sequences]
        return self.service.accepts("compute a loss", lambda: self.client.forward(data, loss).result())

    def forward_backward(
        self, sequences: Sequence[Datum], loss: str, settings: Mapping[str, float] | None
    ) -> list[Floats]:
        """Add the gradient of a step to the adapter's, and return the logprobs of the targets; sent once only."""
        data = [self._datum(of) for of in sequences]
        options = None if settings is None else dict(settings)
        output = self.service.call(
            "compute a gradient", lambda: self.client.forward_backward(data, loss, options).result(), repeats=False
        )
        return self._logprobs(sequences, output)

    def optim_step(
        self, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, grad_clip: float
    ) -> float | None:
        """Apply the gradient with AdamW and clear it; sent once only. Return its norm, if the service reports it."""
        adam = self._types.AdamParams(
            learning_rate=lr,
            beta1=betas[0],
            beta2=betas[1],
            eps=eps,
            weight_decay=weight_decay,
            grad_clip_norm=grad_clip,
        )
        done = self.service.call("update the adapter", lambda: self.client.optim_step(adam).result(), repeats=False)
        norms = [value for name, value in (done.metrics or {}).items() if name.rpartition("/")[2] == "grad_norm"]
        return norms[0] if norms else None

    def save_state(self) -> str:
        """Store the adapter with its optimizer's state, and return the path by which the service knows it."""
        saved = self.service.call("save its state", lambda: self.client.save_state(self._name()).result())
        return str(saved.path)

    def load_state(self, path: str) -> None:
        """Load a stored adapter with its optimizer's state."""
        self.service.call("load a state", lambda: self.client.load_state_with_optimizer(path).result())

    def save_weights(self) -> str:
        """Store the adapter's weights without its optimizer's state, for an archive, and return their path."""
        saved = self.service.call(
            "save its weights", lambda: self.client.save_weights_for_sampler(self._name()).result()
        )
        return str(saved.path)

    def sampling_client(self) -> Any:
        """Return the SDK's client that samples from the present weights."""
        retries = self.service.importable("tinker.lib.retry_handler").RetryConfig(enable_retry_logic=False)
        return self.service.call(
            "give its weights to its sampler",
            lambda: self.client.save_weights_and_get_sampling_client(retry_config=retries),
        )

    def close(self) -> None:
        """Remove the adapter from the service's memory, unless the service is lost, and end the session."""
        if not self.service.is_lost:
            self.service.unload(self.client)
        self.service.close()

    def _name(self) -> str:
        self._count += 1
        return f"echo-{self._run}-{self._count}"

    def _datum(self, of: Datum) -> Any:
        arrays = {"target_tokens": of.target_ids, "logprobs": of.logprobs, "advantages": of.advantages}
        inputs = {name: values for name, values in arrays.items() if values is not None}
        return self._types.Datum(
            model_input=self._types.ModelInput.from_ints(of.input_ids.tolist()), loss_fn_inputs=inputs
        )

    def _logprobs(self, sequences: Sequence[Datum], output: Any) -> list[Floats]:
        found = [np.asarray(of["logprobs"].data, dtype=np.float32) for of in output.loss_fn_outputs]
        if [len(of) for of in found] != [len(of) for of in sequences] or not all(map(_finite, found)):
            raise EchoError(
                f"the Tinker service at {self.service.url} returns logprobs that are not finite, or not one per target",
                "the last checkpoint is intact; try a lower optim.lr, and check the service's log",
                exit_code=3,
            )
        return found


def _finite(values: Floats) -> bool:
    return all(map(math.isfinite, values.tolist()))
