"""Measure the rounding errors of bfloat16 logprobs on a CPU: the same tokens scored in float32 and in bfloat16.

    .venv/bin/python scripts/real_model/measure_bfloat16.py "$(bash scripts/real_model/prepare)"

The tokens are the outputs and actions of the first 16 held-out expert episodes of `toy-files`.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from echo_cli.config.loader import load_config
from echo_cli.environments.worlds import open_worlds
from echo_cli.evaluation.evaluator import expert_pools
from echo_cli.evaluation.token_losses import token_losses
from echo_cli.models.loading import open_policy

_EPISODES = 16


def losses(folder: str, dtype: str) -> NDArray[np.float64]:
    """Return the loss of every scored token, nats."""
    words = ["model.kind=hf", f"model.path={folder}", f"model.dtype={dtype}", "device=cpu", "objective.kl_coeff=0"]
    config = load_config("toy-files", words)
    policy, _ = open_policy(config)
    with open_worlds(config) as worlds:
        played = expert_pools(config, worlds, policy)["heldout"].trajectories[:_EPISODES]
    scored = token_losses(policy, played)
    return np.array([nats for episode in scored for segment in episode for nats in segment.nats or ()])


def main(folder: str) -> None:
    """Print the mean losses and the distribution of the differences per token."""
    exact, rounded = losses(folder, "float32"), losses(folder, "bfloat16")
    apart = np.abs(rounded - exact)
    quantiles = ", ".join(f"{share:.0%}: {np.quantile(apart, share):.3f}" for share in (0.5, 0.95, 0.99, 1))
    print(f"{len(exact)} tokens, mean loss {exact.mean():.4f} nats in float32, {rounded.mean():.4f} in bfloat16")
    print(f"difference per token, nats: mean {apart.mean():.3f}, quantiles {quantiles}")


if __name__ == "__main__":
    main(sys.argv[1])
