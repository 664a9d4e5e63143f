"""TRL's update on the same rollouts: `GRPOTrainer`'s own training step, with an env term on its own logprobs.

Run as a process by TRL's interpreter, which needs no echo_cli: `python -m lm_benchmark.trl_update SPEC`.

The timed work is `GRPOTrainer.training_step` for each micro-batch (its fused LM head, its loss, entropies and metrics,
and accelerate's backward pass), then clipping and its optimizer's step. Generation is not timed: `_prepare_inputs`
returns the rollouts. The env term normalises over the whole step, so that accumulation changes nothing (the published
recipe takes means per micro-batch). Temperature is 1, at which one pass serves both terms.

Shapes: B rows, P prompt tokens, T completion tokens.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from lm_benchmark.architecture import ARCHITECTURES, load_model, random_model
from lm_benchmark.worker import serve

Inputs = dict[str, Tensor]


class EchoTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO + `coeff` · env term, with token weights from the inputs; `coeff` 0 omits the env term."""

    coeff = 0.0

    def _prepare_inputs(self, generation_batch: Inputs) -> Inputs:
        return generation_batch

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logprobs_BT = found[0]
        return found

    def _compute_loss(self, model: Any, inputs: Inputs) -> Tensor:
        rl: Tensor = super()._compute_loss(model, inputs)
        if self.coeff == 0:
            return rl
        env: Tensor = -(inputs["env_weight_BT"] * self._logprobs_BT).sum()
        return rl + self.coeff * env


class TrlUpdate:
    """Contender: a trainer and the step's micro-batches, padded to the longest rollout of the step as TRL does."""

    def __init__(self, spec: dict[str, Any], model: Any) -> None:
        device = spec["device"]
        step: Inputs = torch.load(spec["tensors"], map_location=device, weights_only=True)
        starts = range(0, len(step["prompt_ids"]), spec["rows"])
        self._micros = [{name: part[start : start + spec["rows"]] for name, part in step.items()} for start in starts]
        arguments = GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            use_cpu=device == "cpu",
            bf16=spec["bf16"],
            gradient_checkpointing=spec["gradient_checkpointing"],
            per_device_train_batch_size=spec["rows"],
            gradient_accumulation_steps=len(self._micros),
            num_generations=spec["group"],
            learning_rate=0.0,
            beta=0.0,
            epsilon=0.2,
            epsilon_high=0.28,
            loss_type="grpo",
            temperature=1.0,
            report_to=[],
            disable_tqdm=True,
        )
        self._trainer = EchoTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0 for _ in completions],
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["a"] * spec["rows"]}),
            processing_class=_tokenizer(),
        )
        self._trainer.coeff = spec["coeff"]
        self._trainer.current_gradient_accumulation_steps = len(self._micros)
        self._trainer.create_optimizer()
        self._trainer.model.train()

    def forward_backward(self) -> float:
        trainer = self._trainer
        return sum(float(trainer.training_step(trainer.model, micro, None)) for micro in self._micros)

    def optim_step(self) -> float:
        trainer = self._trainer
        norm = float(trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), 1.0))
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        return norm

    def parameters(self) -> int:
        """Return the number of trained parameters, each of which has a gradient."""
        return sum(part.numel() for part in self._trainer.model.parameters() if part.requires_grad)


def _model(name: str, device: str) -> Any:
    """Load the model in a folder, or create one with random weights by its architecture's name."""
    if name in ARCHITECTURES:
        return random_model(ARCHITECTURES[name], 0, device)
    return load_model(Path(name)).to(device)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a placeholder: a trainer requires a tokenizer, but no text is tokenized."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    torch.set_num_threads(spec["threads"])
    serve(lambda model: TrlUpdate(spec, _model(model, spec["device"])))
