"""The limits of an episode in tokens and turns."""

from __future__ import annotations

from dataclasses import dataclass

from echo_cli.config.schema import Config
from echo_cli.errors import EchoError
from echo_cli.models.policy import TorchPolicy
from echo_cli.trajectory import CUT_OUTPUT

_PROMPT_TOKENS = 25


@dataclass(frozen=True)
class EpisodeLimits:
    """Caps of an episode, in tokens: one action, one reply of the environment, the whole episode."""

    action_tokens: int
    output_tokens: int
    episode_tokens: int

    def longest(self, scaffold: int) -> int:
        """The most tokens that an episode can have, by any tokenizer of bytes.

        Args:
            scaffold: `Renderer.overhead`.

        An action ends by `episode_tokens`, unless even a cut opening leaves it no room. What follows is at most what
        `Episode._add_pieces` lets through: two outputs, a notice after each and after a last scrap, and a prompt.
        """
        return (
            max(self.episode_tokens, self._first_action(scaffold)) + 2 * self.output_tokens + _around_outputs(scaffold)
        )

    def within(self, context: int, scaffold: int) -> EpisodeLimits:
        """These caps, brought down until no episode is longer than `context` tokens.

        The episode's gives way first, to half of the context; then that of outputs.

        Raises:
            EchoError: there is no room for one action and the first token of its answer.
        """
        if self.longest(scaffold) <= context:
            return self
        room = context - _around_outputs(scaffold)
        until_last_action = max(self._first_action(scaffold), min(self.episode_tokens, context // 2, room - 2))
        output_tokens = min(self.output_tokens, (room - until_last_action) // 2)
        if output_tokens < 1:
            least = _around_outputs(scaffold) + self._first_action(scaffold) + 2
            has = f"it has {least}, {self.action_tokens} of them an action"
            tip = "choose a model with a longer context"
            if least - self.action_tokens < context:
                tip = f"lower rollout.max_action_tokens, or {tip}"
            raise EchoError(f"not even one turn fits the model's {context} tokens: {has}", tip)
        return EpisodeLimits(self.action_tokens, output_tokens, min(self.episode_tokens, room - 2 * output_tokens))

    def _first_action(self, scaffold: int) -> int:
        """Tokens until the end of the first action, where the opening is cut to its least."""
        return 1 + len(CUT_OUTPUT) + _PROMPT_TOKENS + scaffold + self.action_tokens


def _around_outputs(scaffold: int) -> int:
    """The most tokens that the last reply has beside its outputs."""
    return 3 * len(CUT_OUTPUT) + _PROMPT_TOKENS + scaffold - 1


def limits_of(config: Config) -> EpisodeLimits:
    """The caps of an episode as configured."""
    rollout = config.rollout
    return EpisodeLimits(rollout.max_action_tokens, rollout.max_output_tokens, rollout.max_episode_tokens)


def limits_for(config: Config, policy: TorchPolicy) -> EpisodeLimits:
    """The caps of an episode of `policy`: those of the config, as far as the context of its model goes.

    Raises:
        EchoError: not even one turn fits it.
    """
    return limits_of(config).within(policy.model.max_length, policy.renderer.overhead)
