"""Scores of generated replies against the true replies, on held-out (command, output) pairs of a run.

A reply is generated greedily after the true transcript up to and including its command, and compared with the whole
reply in the pool. The line that states the exit status is removed from both, and text that the environment's config
declares volatile counts as equal.

- exact match: the two texts are equal.
- edit similarity: 1 - Levenshtein distance / length of the longer text, in characters.
- exit status: the generated reply states the true exit status. Only a reply that ended can state it by omission.
- ended: the reply ended (see replies.py) before the cap.
- exact match, edit similarity and exit status at the true length: the generated reply is truncated to as many tokens as
  the true reply has. Unless `objective.end_of_output` is set, the env term trains the content of outputs and not their
  end, so without ended replies these measures show the effect of training.

Each measure is a mean over replies with an interval from a bootstrap over trajectories, because replies of one
transcript are not independent.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapidfuzz.distance import Levenshtein

from echo_cli.config.episodes.chosen import alone_in
from echo_cli.config.schema import Config
from echo_cli.environments.worlds import text_settings
from echo_cli.errors import EchoError
from echo_cli.evaluation.dream.generation import TrueReply, dream, true_replies
from echo_cli.evaluation.dream.replies import Generated, ReplyForm, reply_form
from echo_cli.evaluation.loaded_run import LoadedRun
from echo_cli.evaluation.records import HELDOUT
from echo_cli.models.backend import Policy
from echo_cli.rollouts.limits import limits_of
from echo_cli.runs.pools import Pair, Pool, pair_of
from echo_cli.seeds import generator
from echo_cli.statistics import Estimate, ratio, ratio_difference

AT_LENGTH = ("exact_match_at_length", "edit_similarity_at_length", "exit_status_at_length")
MEASURES = ("exact_match", "edit_similarity", "exit_status", "ended", *AT_LENGTH)
ALL, COMMAND, SEEN = "all", "command", "seen"


@dataclass(frozen=True)
class Question:
    """A pair whose reply is to be generated."""

    pair: Pair
    trajectory: int
    """Index of its trajectory in the pool, 0-based."""
    novel: bool
    """Whether training has not executed the pair."""
    reply: TrueReply


@dataclass(frozen=True)
class ReplyScore:
    """Measures of one generated reply."""

    text: str
    exact_match: bool | None
    """Whether the texts are equal. This field and the next three are None if transcripts do not mark the end of a
    reply."""
    edit_similarity: float | None
    exit_status: bool | None
    """Whether the reply states the true exit status; None also if the environment gave none."""
    ended: bool | None
    text_at_length: str
    """The reply truncated to the length of the true reply."""
    exact_match_at_length: bool
    edit_similarity_at_length: float
    exit_status_at_length: bool | None
    """Whether the truncated reply states the true exit status; None if the environment gave none."""


@dataclass(frozen=True)
class DreamGroup:
    """Measures of a group of replies by name, for the initial policy and the checkpoint, and the paired difference."""

    group: str
    key: str
    replies: int
    trajectories: int
    before: Mapping[str, Estimate]
    after: Mapping[str, Estimate]
    difference: Mapping[str, Estimate]


@dataclass(frozen=True)
class DreamReport:
    """Result of `dream --score`."""

    run: str
    step: int
    pool: str
    seed: int
    requested: int
    novel_pairs: int
    """Number of novel pairs in the pool."""
    seen_pairs: int
    """Number of seen pairs in the pool."""
    max_tokens: int
    """Cap of a generated reply, tokens."""
    questions: Sequence[Question]
    before: Sequence[ReplyScore]
    after: Sequence[ReplyScore]
    groups: Sequence[DreamGroup]
    """All novel replies, the novel replies per command, and the seen replies."""
    notes: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object with all measures, their intervals, and every reply."""
        return {
            **{name: getattr(self, name) for name in ("run", "step", "pool", "seed", "requested", "max_tokens")},
            **{"novel_pairs": self.novel_pairs, "seen_pairs": self.seen_pairs},
            "scored": {
                "novel": sum(question.novel for question in self.questions),
                "seen": sum(not question.novel for question in self.questions),
            },
            "groups": [asdict(group) for group in self.groups],
            "replies": [
                {
                    **{"command": question.pair[0], "novel": question.novel, "trajectory": question.trajectory},
                    **{"exit_code": question.reply.turn.exit_code, "actual": question.reply.text},
                    **{"before": asdict(before), "after": asdict(after)},
                }
                for question, before, after in zip(self.questions, self.before, self.after, strict=True)
            ],
            "notes": list(self.notes),
        }


def score_dreams(
    opened: LoadedRun,
    *,
    checkpoint: str | int,
    number: int,
    pool_folder: Path | None,
    seed: int,
    max_tokens: int | None,
) -> DreamReport:
    """Score a checkpoint of a run, and the run's initial policy, on pairs of a pool, and close the run.

    The first `number` novel pairs are scored, in an order drawn with `seed`. Up to as many seen pairs are scored
    separately.

    Args:
        checkpoint: "best", "latest" or a step.
        pool_folder: folder of a pool to score instead of the run's held-out pool; it needs no environment.
        max_tokens: cap of a generated reply, tokens; None for `most_tokens`.

    Raises:
        EchoError: the run has several environments; the checkpoint or pool does not exist, the pool is empty, or it
            has to be played and the environment is not available (exit code 1).
    """
    with opened as run:
        alone_in(run.config, None)
        folder, step = run.checkpoint(checkpoint)
        executed = set(run.observed(step))
        policy = run.policy()
        pool = _heldout_pool(run, policy) if pool_folder is None else run.pool_in(pool_folder, policy)
    config = run.config
    settings = text_settings(config.environment)
    form = reply_form(policy.renderer, settings, learned=config.objective.end_of_output)
    usable = _questions(pool, policy, form, executed)
    if not usable:
        raise EchoError("the pool has no (command, output) pair", "add held-out tasks to the environment")
    questions = _chosen(usable, number, seed)
    longest = most_tokens(config, policy, form) if max_tokens is None else max_tokens
    batch = max(config.rollout.tasks_per_step * config.rollout.group_size, 1)
    before = _answers(policy, form, questions, longest, batch)
    policy.load(folder)
    after = _answers(policy, form, questions, longest, batch)
    return DreamReport(
        run=run.name,
        step=step,
        pool="heldout" if pool_folder is None else pool_folder.resolve().name,
        seed=seed,
        requested=number,
        novel_pairs=len(pool.pairs - executed),
        seen_pairs=len(pool.pairs & executed),
        max_tokens=longest,
        questions=questions,
        before=before,
        after=after,
        groups=_groups(questions, before, after),
        notes=_notes(questions, form, pool, len(pool.pairs) - len(usable)),
    )


def most_tokens(config: Config, policy: Policy, form: ReplyForm) -> int:
    """Return the default cap of a generated reply, tokens: the run's output cap plus an exit status and an end."""
    limits = limits_of(config).within(policy.model.max_length, policy.renderer.overhead)
    return limits.output_tokens + form.longest_end


def score_reply(generated: Generated, reply: TrueReply, form: ReplyForm) -> ReplyScore:
    """Compare a generated reply with the true one."""
    exit_code = reply.turn.exit_code
    true = form.masked(form.exit_status(reply.text)[0])
    said, status = form.exit_status(generated.text, ended=generated.ended)
    cut = form.cut(generated, reply.tokens).text
    at_length, status_at_length = form.exit_status(cut)
    said, at_length = form.masked(said), form.masked(at_length)
    known = form.status is not None and exit_code is not None
    return ReplyScore(
        text=generated.text,
        exact_match=said == true if form.marked else None,
        edit_similarity=edit_similarity(said, true) if form.marked else None,
        exit_status=status == exit_code if form.marked and known else None,
        ended=generated.ended if form.marked else None,
        text_at_length=cut,
        exact_match_at_length=at_length == true,
        edit_similarity_at_length=edit_similarity(at_length, true),
        exit_status_at_length=status_at_length == exit_code if known else None,
    )


def edit_similarity(first: str, second: str) -> float:
    """Return 1 - Levenshtein distance / length of the longer text, in characters: 0 to 1 (equal texts)."""
    return Levenshtein.normalized_similarity(first, second)


def _heldout_pool(run: LoadedRun, policy: Policy) -> Pool:
    pool = run.kept_pool(HELDOUT, policy.renderer) or run.frozen_pools(policy).get(HELDOUT)
    if pool is None:
        message = f"{run.directory.path.name} has no held-out pool"
        raise EchoError(message, "name a pool with --pool DIR; `echo-cli pool build DIR` builds one")
    return pool


def _questions(pool: Pool, policy: Policy, form: ReplyForm, executed: set[Pair]) -> list[Question]:
    """Return the pool's pairs, without pairs whose reply was truncated to the model's context."""
    found = []
    for place, (trajectory, spans) in enumerate(zip(pool.trajectories, pool.spans, strict=True)):
        first: dict[Pair, TrueReply] = {}
        for reply in true_replies(trajectory, policy.renderer, form):
            first.setdefault(pair_of(reply.turn), reply)
        found += [
            Question(span.pair, place, span.pair not in executed, first[span.pair])
            for span in spans
            if first[span.pair].output == span.pair[1]
        ]
    return found


def _chosen(questions: Sequence[Question], number: int, seed: int) -> list[Question]:
    """Return the first `number` novel questions in an order drawn with `seed`, then up to as many seen ones."""
    order = generator(seed, "dream/pairs").sample(questions, len(questions))
    return [question for novel in (True, False) for question in [q for q in order if q.novel is novel][:number]]


def _answers(
    policy: Policy, form: ReplyForm, questions: Sequence[Question], longest: int, batch: int
) -> list[ReplyScore]:
    """Generate and score greedy replies to `questions`, `batch` at a time, batched by similar context length."""
    order = sorted(range(len(questions)), key=lambda place: len(questions[place].reply.context))
    scores: dict[int, ReplyScore] = {}
    for first in range(0, len(order), batch):
        places = order[first : first + batch]
        asked = [questions[place].reply for place in places]
        # Without a mark no reply can end by itself, so replies are scored only at the true length.
        most = [longest if form.marked else max(min(longest, reply.tokens), 1) for reply in asked]
        replies = dream(policy, form, [reply.context for reply in asked], most)
        for place, generated in zip(places, replies, strict=True):
            scores[place] = score_reply(generated, questions[place].reply, form)
    return [scores[place] for place in range(len(questions))]


def _groups(
    questions: Sequence[Question], before: Sequence[ReplyScore], after: Sequence[ReplyScore]
) -> list[DreamGroup]:
    novel = [place for place, question in enumerate(questions) if question.novel]
    words = Counter(command_word(questions[place]) for place in novel)
    chosen = [(ALL, "", novel)]
    for word, _ in words.most_common():
        chosen.append((COMMAND, word, [place for place in novel if command_word(questions[place]) == word]))
    chosen.append((SEEN, "", [place for place, question in enumerate(questions) if not question.novel]))
    groups = []
    for group, key, places in chosen:
        if not places:
            continue
        owners = [questions[place].trajectory for place in places]
        first, last = ([scores[place] for place in places] for scores in (before, after))
        columns = {name: (_summed(first, owners, name), _summed(last, owners, name)) for name in MEASURES}
        measured = [
            {name: found for name, of in columns.items() if (found := ratio(*of[which])) is not None}
            for which in range(2)
        ]
        difference = {
            name: found
            for name, ((start, count), (end, _)) in columns.items()
            if (found := ratio_difference(start, end, count)) is not None
        }
        groups.append(DreamGroup(group, key, len(places), len(set(owners)), measured[0], measured[1], difference))
    return groups


def command_word(question: Question) -> str:
    """Return the first word of the command."""
    return question.pair[0].partition(" ")[0]


def _summed(scores: Sequence[ReplyScore], owners: Sequence[int], name: str) -> tuple[list[float], list[float]]:
    """Return, per trajectory, the sum of a measure and the number of replies that have it."""
    total, count = defaultdict[int, float](float), defaultdict[int, float](float)
    for owner, score in zip(owners, scores, strict=True):
        value = getattr(score, name)
        total[owner] += 0.0 if value is None else float(value)
        count[owner] += value is not None
    return list(total.values()), list(count.values())


def _notes(questions: Sequence[Question], form: ReplyForm, pool: Pool, missing: int) -> list[str]:
    notes = []
    if not form.marked:
        notes.append("these transcripts do not mark the end of a reply: replies are scored at the true length")
    if pool.cut:
        notes.append(f"trajectories truncated to the model's context: {pool.cut}; truncated pairs: {missing}")
    statuses = Counter(question.reply.turn.exit_code for question in questions if question.novel)
    if statuses and form.status is not None:
        listed = ", ".join(f"{code} in {count}" for code, count in statuses.most_common())
        notes.append(f"exit statuses of the true novel replies: {listed}")
    return notes
