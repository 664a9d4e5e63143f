"""Limits of an episode, in tokens."""

from __future__ import annotations

from dataclasses import dataclass

from echo_cli.config.schema import Config
from echo_cli.environments.protocol import TaskSuite
from echo_cli.environments.several import members_of
from echo_cli.errors import EchoError
from echo_cli.models.backend import Policy
from echo_cli.models.renderer import tools_tokens
from echo_cli.trajectory import CUT_OUTPUT

_PROMPT_TOKENS = 25


@dataclass(frozen=True)
class EpisodeLimits:
    """Caps on an action, on a piece of environment output, and on the whole episode, tokens."""

    action_tokens: int
    output_tokens: int
    episode_tokens: int

    def longest(self, scaffold: int, tools: int = 0) -> int:
        """Return the maximum length of an episode with any byte-level tokenizer, tokens.

        An action ends by `episode_tokens`, unless even a truncated opening leaves no room for it. After the last action
        `Episode._add_pieces` adds at most the tokens of two outputs, three notices and a prompt.

        Args:
            scaffold: `Renderer.overhead`, tokens.
            tools: `tools_tokens`, the length of the list of tools in an opening, tokens.
        """
        first = self._first_action(scaffold + tools)
        return max(self.episode_tokens, first) + 2 * self.output_tokens + _around_outputs(scaffold)

    def within(self, context: int, scaffold: int, tools: int = 0) -> EpisodeLimits:
        """Return the caps lowered so that no episode is longer than `context` tokens.

        The cap on the episode is lowered first, down to half of the context; then the cap on outputs.

        Raises:
            EchoError: the context has no room for one action and the first token of the reply, or `episode_tokens` has
                none for an action after the list of tools.
        """
        first = self._first_action(scaffold + tools)
        if tools and first > self.episode_tokens:
            raise EchoError(
                f"the list of tools takes {tools} tokens: an episode needs {first} up to the end of its first action, "
                f"and rollout.max_episode_tokens is {self.episode_tokens}",
                "name the tools that the tasks need in environment.mcp.allow, or raise rollout.max_episode_tokens",
            )
        if self.longest(scaffold, tools) <= context:
            return self
        room = context - _around_outputs(scaffold)
        until_last_action = max(first, min(self.episode_tokens, context // 2, room - 2))
        output_tokens = min(self.output_tokens, (room - until_last_action) // 2)
        if output_tokens < 1:
            least = _around_outputs(scaffold) + first + 2
            needs = f"it needs {least}, {self.action_tokens} of them for the action"
            tip = "choose a model with a longer context"
            if tools:
                needs += f", {tools} for the list of tools"
                tip = f"name the tools that the tasks need in environment.mcp.allow, or {tip}"
            elif least - self.action_tokens < context:
                tip = f"lower rollout.max_action_tokens, or {tip}"
            raise EchoError(f"one turn does not fit in the model's context of {context} tokens: {needs}", tip)
        return EpisodeLimits(self.action_tokens, output_tokens, min(self.episode_tokens, room - 2 * output_tokens))

    def lowered_line(self, context: int, scaffold: int, tools: int = 0) -> str | None:
        """Return a line on the caps that `within` lowers, or None if it lowers none.

        Raises:
            EchoError: as in `within`.
        """
        fitting = self.within(context, scaffold, tools)
        if fitting == self:
            return None
        return (
            f"an episode of {self.longest(scaffold, tools)} tokens does not fit the model's context of {context}: "
            f"max_episode_tokens is set to {fitting.episode_tokens}, max_output_tokens to {fitting.output_tokens}"
        )

    def _first_action(self, scaffold: int) -> int:
        """Return the number of tokens up to the end of the first action, with the shortest possible opening."""
        return 1 + len(CUT_OUTPUT) + _PROMPT_TOKENS + scaffold + self.action_tokens


def _around_outputs(scaffold: int) -> int:
    """Return the maximum number of tokens of the last reply other than its outputs."""
    return 3 * len(CUT_OUTPUT) + _PROMPT_TOKENS + scaffold - 1


def limits_of(config: Config) -> EpisodeLimits:
    """Return the configured caps of an episode."""
    rollout = config.rollout
    return EpisodeLimits(rollout.max_action_tokens, rollout.max_output_tokens, rollout.max_episode_tokens)


def limits_for(config: Config, policy: Policy, worlds: TaskSuite) -> EpisodeLimits:
    """Return the configured caps of an episode in `worlds`, lowered to fit the context of the policy's model.

    Several environments share their caps, which leave room for the longest of their lists of tools.

    Raises:
        EchoError: one turn does not fit in the context or in `rollout.max_episode_tokens`.
    """
    tools = max(tools_tokens(policy.renderer, member.description.tools) for member in members_of(worlds).values())
    return limits_of(config).within(policy.model.max_length, policy.renderer.overhead, tools)
