"""Readout of one output of a pool, and the loss of every token of an episode."""

from __future__ import annotations

import pytest
import torch
from evaluation.test_measures import TOKENIZER, policy, transcript

from echo_cli.errors import EchoError
from echo_cli.evaluation.token_losses import find_output, read_out, token_losses
from echo_cli.runs.pools import Pair, pool_of
from echo_cli.trajectory import Role

POOL = pool_of(
    [
        transcript(("ls", "a\n", "", 0), ("grep x a", "x: 7\n", "", 0)),
        transcript(("grep y a", "y: 8\n", "", 0), ("cat b", "", "no b\n", 1)),
    ]
)
X, Y = ("grep x a", "x: 7\n"), ("grep y a", "y: 8\n")


@pytest.mark.parametrize(
    ("command", "seen", "pair"),
    [
        (None, [], X),  # the first grep
        (None, [("grep x a", "of another world\n")], Y),  # of a command that training has not executed
        (None, [X, Y], ("ls", "a\n")),  # else the first other command
        (None, [X, Y, ("cat b", "no b\n"), ("ls", "a\n")], ("ls", "a\n")),
        ("  grep  y a ", [Y], Y),
        ("cat b", [], ("cat b", "no b\n")),
    ],
)
def test_the_output_that_is_read_out(command: str | None, seen: list[Pair], pair: Pair) -> None:
    found = find_output(POOL, command, seen, "held-out", "tip")
    assert found.pair == pair and found.token_ids == TOKENIZER.encode(pair[1])
    assert found.trajectory.token_ids[found.start :][: len(found.token_ids)] == found.token_ids


def test_a_command_that_is_not_in_the_pool_is_refused_with_the_nearest() -> None:
    with pytest.raises(EchoError, match=r"^'cat c' is not a command of the held-out pool") as caught:
        find_output(POOL, "cat c", [], "held-out", "fill it")
    assert caught.value.tip == "the nearest command is: cat b"
    with pytest.raises(EchoError, match=r"^the held-out pool is empty") as caught:
        find_output(pool_of([]), None, [], "held-out", "fill it")
    assert caught.value.tip == "fill it"


def test_a_readout_shows_the_most_probable_tokens_of_both_policies() -> None:
    output = find_output(POOL, None, [], "held-out", "tip")
    before, after = policy(uniform=True), policy()
    with torch.no_grad():
        hidden_TH = after.model(torch.tensor([output.trajectory.token_ids]))[0]
    predicted = (hidden_TH @ after.model.lm_head_VH.T).argmax(-1)[output.start - 1 :][: len(output.token_ids)].tolist()
    found = read_out(output, before, after)
    assert (found["command"], found["actual"], found["tokens"]) == (*X, len(output.token_ids))
    correct = sum(one == other for one, other in zip(predicted, output.token_ids, strict=True))
    assert found["after"] == {"text": TOKENIZER.decode(predicted), "correct": correct}
    assert found["before"] == {"text": TOKENIZER.decode([0] * len(output.token_ids)), "correct": 0}  # all tokens alike


def test_the_loss_of_every_token_but_the_context() -> None:
    scorer = policy()
    found = token_losses(scorer, POOL.trajectories)
    assert len(found) == len(POOL.trajectories)
    for trajectory, segments in zip(POOL.trajectories, found, strict=True):
        ids = torch.tensor([trajectory.token_ids])
        with torch.no_grad():
            logprobs_TV = (scorer.model(ids)[0] @ scorer.model.lm_head_VH.T).log_softmax(-1)
        start = 0
        for entry, segment in zip(segments, trajectory.segments, strict=True):
            end = start + len(segment.token_ids)
            assert entry.segment == segment and len(entry.pieces) == len(segment.token_ids)
            assert "".join(entry.pieces) == segment.text
            if segment.role is Role.CONTEXT:
                assert entry.nats is None
            else:
                places = torch.arange(start, end)
                assert entry.nats == pytest.approx((-logprobs_TV[places - 1, ids[0, places]]).tolist(), rel=1e-4)
            start = end
