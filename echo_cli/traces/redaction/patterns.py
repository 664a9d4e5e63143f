"""Patterns of secrets, and of what identifies a person, in text: those of detect-secrets, and our own.

The library knows tokens by their shape. Our own patterns find keys in blocks, values beside a telling name, home
folders and e-mail addresses, and tokens that the library does not know, or knows only in part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from echo_cli.errors import EchoError, missing_package

HOME, EMAIL = "home folder", "e-mail address"
"""Kinds of what identifies a person."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """A secret in a text."""

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Detector:
    """A pattern of a kind of secret."""

    kind: str
    pattern: re.Pattern[str]
    hints: tuple[str, ...] = ()
    """Texts of which every match has one, in lower case if the pattern ignores case; empty if there are no such texts.
    A pattern with hints is looked for in their lines."""
    span: Callable[[re.Match[str]], Span | None] = lambda match: match.span(match.re.groups)
    """Returns the part of a match that is the secret, by default its last group or all; None if it is no secret."""

    def find(self, text: str, windows: Sequence[Span]) -> Iterator[Found]:
        """Yield the secrets in the windows of a text."""
        for begin, stop in windows:
            for match in self.pattern.finditer(text, begin, stop):
                if (span := self.span(match)) is not None:
                    yield Found(span[0], _end_of_token(text, span[1]) if span[1] == stop else span[1], self.kind)


def detectors() -> list[Detector]:
    """Return the detectors, the most exact first.

    Raises:
        EchoError: detect-secrets is not installed.
    """
    try:
        from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
        from detect_secrets.plugins.base import RegexBasedDetector
    except ImportError as error:
        missing = missing_package("--redact", "detect-secrets", "redact")
        raise EchoError(missing.message, f"{missing.tip}; --no-redact keeps the text as it is") from error
    library = list[Detector]()
    plugins: dict[str, Any] = get_mapping_from_secret_type_to_class()
    for kind, plugin in sorted(plugins.items()):
        if issubclass(plugin, RegexBasedDetector) and plugin.__name__ not in _REPLACED:
            hints = _HINTS.get(plugin.__name__, ())
            library += [Detector(kind, pattern, hints, _whole_token) for pattern in plugin.denylist]
    return [*OWN, *library]


def find_secrets(text: str, known: Sequence[Detector]) -> list[Found]:
    """Return the secrets in a text, in order and disjoint: of two that overlap, the first in `known` names the kind."""
    folded = text.lower()
    if len(folded) != len(text):  # the lower case of a few letters is two
        folded = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
    windows, found = dict[tuple[tuple[str, ...], bool], list[Span]](), list[Found]()
    for detector in known:
        key = detector.hints, bool(detector.pattern.flags & re.IGNORECASE)
        if key not in windows:
            windows[key] = _windows(detector.hints, folded if key[1] else text)
        found += detector.find(text, windows[key])
    return disjoint(found)


def disjoint(found: Sequence[Found]) -> list[Found]:
    """Return spans in order; those that overlap become one, of the kind of the first in `found`."""
    merged = list[tuple[int, Found]]()
    for place, each in sorted(enumerate(found), key=lambda item: (item[1].start, item[0])):
        if merged and each.start < merged[-1][1].end:
            first, last = merged.pop()
            kind = last.kind if first < place else each.kind
            merged.append((min(first, place), Found(last.start, max(last.end, each.end), kind)))
        else:
            merged.append((place, each))
    return [each for _, each in merged]


def _windows(hints: Sequence[str], hinted: str) -> list[Span]:
    """Return the lines with one of the hints, or the whole text for none; of a long line, the parts around them."""
    windows = set[Span]() if hints else {(0, len(hinted))}
    for hint in hints:
        at = hinted.find(hint)
        while at >= 0:
            first, last = max(at - _REACH, 0), min(at + _REACH, len(hinted))
            start, end = hinted.rfind("\n", first, at), hinted.find("\n", at, last)
            windows.add((first if start < 0 else start, last if end < 0 else end))
            at = hinted.find(hint, at + _REACH // 2 if end < 0 else end)
    return sorted(windows)


def _end_of_token(text: str, start: int) -> int:
    """Return where the token that goes on at a position ends."""
    match = _TOKEN.match(text, start)
    return start if match is None else match.end()


def _whole_token(match: re.Match[str]) -> Span | None:
    """Return the secret of a match of the library, to the end of its token, without the text around it."""
    longest = max(range(match.re.groups + 1), key=lambda number: len(match[number] or "") if number else 0)
    if match[0].startswith("://"):  # the password of an address, which may be short
        return None if match[1][0] in _REFERENCE else match.span(1)
    # A short group is the beginning of a token, not the secret in its context.
    start, end = match.span(longest if len(match[longest]) >= 16 else 0)
    text = match.string[start:end]
    start += len(text) - len(text.lstrip(" \t\r\n\"'=:"))
    end -= len(text) - len(text.rstrip(" \t\r\n\"'"))
    return start, _end_of_token(match.string, end)


def _value(match: re.Match[str]) -> Span | None:
    """Return the value beside a telling name, unless it is a reference, a placeholder or a word of a program."""
    group = "bare" if match["quoted"] is None else "quoted"
    value, name = match[group].rstrip(".:"), match["name"]
    span = match.start(group), match.start(group) + len(value)
    if not value or value[0] in _REFERENCE or not value.strip("*x•.-_") or value.lower() in _WORDS:
        return None
    if group == "bare" and (_IDENTIFIER.fullmatch(value) or match.string[match.end() : match.end() + 1] in ("(", "[")):
        return None
    if name.isupper() and match["sign"] == "=":  # an environment variable
        return span if len(value) >= 6 else None
    if group == "quoted" and name.lower().startswith(("passw", "passphrase", "pwd")):
        return span
    mixed = any(map(str.isalpha, value)) and any(map(str.isdigit, value)) and len(value) >= 8
    return span if mixed or (group == "quoted" and len(value) >= 16) else None


def _address(match: re.Match[str]) -> Span | None:
    """Return the e-mail address of a domain, unless the account is no person's, or it is the name of a file."""
    text, domain = match.string, match[1].lower()
    local = text[_back(text, match.start(), "._%+-", 64) : match.start()].lstrip("._%+-")
    reserved = re.search(r"(?:^|\.)example(?:\.\w+)?$|\.(?:test|invalid|png|jpe?g|gif|svg|webp)$", domain)
    return None if reserved or local.lower() in ("", "git") else (match.start() - len(local), match.end())


def _account(match: re.Match[str]) -> Span | None:
    """Return the account's name in a home folder, unless the path is relative, or part of a web address."""
    text, name = match.string, match["name"].rstrip(".")
    start = _back(text, match.start(), "_./~@+-", 256)
    path, before = text[start : match.end()], text[max(start - 6, 0) : start]
    web = path.startswith("//") and before.endswith(":") and not before.endswith("file:")
    if web or not (path[0] == "/" or match[0][1] == ":") or name.lower() in ACCOUNTS or name.isdigit():
        return None
    return match.start("name"), match.start("name") + len(name)


def _back(text: str, start: int, others: str, most: int) -> int:
    """Return where the letters, digits and `others` before a position begin, without an escape such as \\n in JSON."""
    first = start
    while first and start - first < most and (text[first - 1].isalnum() or text[first - 1] in others):
        first -= 1
    return first + 1 if 0 < first < start and text[first - 1] == "\\" and text[first] in "nrt" else first


ACCOUNTS = frozenset(
    "agent app codespace coder developer guest jovyan linuxbrew me node public root runner runneradmin sandbox shared"
    " ubuntu user username vscode you".split()
)
"""Account names that identify nobody."""

_REACH = 4096
"""Length of the text around a hint in which its pattern is looked for, if its line is longer, characters."""
_TOKEN = re.compile(r"[\w+/=-]*")
_START = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt]))"
"""Start of a token, also after an escape such as \\n in JSON."""

_REPLACED = ("IPPublicDetector", "JwtTokenDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector")
"""Detectors of the library that are not used: their matches are incomplete, take quadratic time, or are no secrets."""
_BESIDE = ("key", "pwd", "pass", "token")
_HINTS = {
    "ArtifactoryDetector": ("AKC", "AP"),
    "AWSKeyDetector": ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws"),
    "AzureStorageKeyDetector": ("AccountKey=",),
    "BasicAuthDetector": ("://",),
    "CloudantDetector": (*_BESIDE, ".cloudant.com"),
    "GitHubTokenDetector": ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    "GitLabTokenDetector": ("gl", "GR1348941"),
    "IbmCloudIamDetector": _BESIDE,
    "IbmCosHmacDetector": ("secret",),
    "MailchimpDetector": ("-us",),
    "PypiTokenDetector": ("pypi-",),
    "SendGridDetector": ("SG.",),
    "SlackDetector": ("xox", "hooks.slack.com"),
    "SoftlayerDetector": (*_BESIDE, "api.softlayer.com"),
    "SquareOAuthDetector": ("sq0csp",),
    "StripeDetector": ("k_live_",),
    "TelegramBotTokenDetector": (":",),
    "TwilioKeyDetector": ("AC", "SK"),
}
"""Hints of the library's detectors."""

_PREFIXES = (
    "sk- sk_test_ rk_test_ pk_live_ whsec_ hf_ github_pat_ npm_ xoxe xapp- AIza ya29. gsk_ xai- r8_ pplx- dop_v1_ dapi"
    " dckr_pat_ lin_api_ ntn_ secret_ sbp_ PMAK- ATATT3 ATBB shpat_ shpss_ sntrys_ tskey- nvapi- AGE-SECRET-KEY-1 hvs."
    " key- tvly- lsv2_"
).split()
"""Beginnings of tokens."""

_NAMES = (
    r"(?:api|auth|access|secret|private|account|service|client|db|database|encryption|signing|session|shared)[_-]?key"
    r"|secret|token|passw(?:or)?d|passphrase|pwd|credentials?"
)
_NAME_HINTS = ("key", "secret", "token", "passw", "passphrase", "pwd", "credential")
_NAMED = "named secret"
_REFERENCE = "$%{<[("
"""First characters of a reference or a placeholder in place of a value."""
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
_WORDS = frozenset("bearer basic string number boolean null none true false undefined redacted changeme".split())

OWN = (
    Detector(
        "private key",
        re.compile(
            r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:"
            r"(?:[^-]|-(?!----)){0,20000}-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
            r"|(?:(?:[\s→|:,.]|\\[nrt]|\d+(?=[\s→|:]))*[A-Za-z0-9+/=]{12,})*)"
        ),
    ),
    Detector("private key", re.compile(r"Private-Lines: \d+((?:\s|\\[rn])+(?:[A-Za-z0-9+/=]+(?:\s|\\[rn])*)+)")),
    Detector(
        "JSON Web Token",
        re.compile(rf"{_START}(?<![_-])eyJ[\w-]{{8,}}={{0,2}}\.[\w-]{{8,}}={{0,2}}(?:\.[\w-]*){{0,3}}"),
        ("eyJ",),
    ),
    Detector(
        "API token",
        re.compile(rf"{_START}(?:{'|'.join(map(re.escape, _PREFIXES))})(?=[A-Za-z_-]{{0,64}}\d)[\w-]{{16,}}"),
        tuple(_PREFIXES),
        lambda match: (match.start(), _end_of_token(match.string, match.end())),
    ),
    Detector("npm token", re.compile(r"_authToken\s?=\s?([^\s\"'\\]+)"), ("_authToken",)),
    Detector(
        "Authorization header",
        re.compile(
            r"authorization(?:\\?[\"'])?\s?[:=]\s?(?:\\?[\"'])?(?:(?:bearer|basic|token|digest|apikey)\s)?([\w+/=.~:-]{8,})",
            re.IGNORECASE,
        ),
        ("authorization",),
    ),
    Detector("Authorization header", re.compile(r"\b[Bb]earer ([A-Za-z0-9_+/=.~-]{20,})"), ("earer ",)),
    Detector(
        "cookie",
        re.compile(r"\b(?:set-)?cookie: ((?:[^=;\s\"'\\]{1,64}=[^;\s\"'\\]*(?:;\s?)?)+)", re.IGNORECASE),
        ("cookie: ",),
    ),
    Detector(
        "signed address",
        re.compile(r"(?:X-Amz-(?:Signature|Security-Token|Credential)|[?&](?:sig|Signature))=([\w%+/=-]{16,})"),
        ("X-Amz-", "sig=", "Signature="),
    ),
    Detector(
        _NAMED,
        re.compile(
            rf"(?P<name>(?:{_NAMES})(?:[_-](?:key|value|id|hash|b64|base64|\d{{1,2}}))?)(?![\w-])(?:\\{{0,3}}[\"'`])?\]?"
            r"(?P<sign>\s{0,3}(?:=>|:=|===?|!==?|[=:])\s{0,3}|\s{1,3}(?=\\{0,3}[\"'`]))"
            r"(?:\\{0,3}[\"'`](?P<quoted>[^\"'`\s\\]{6,})|(?P<bare>[^\s\"'`,;)}\]<>\\&|({\[]{6,}))",
            re.IGNORECASE,
        ),
        _NAME_HINTS,
        _value,
    ),
    Detector(
        _NAMED,
        re.compile(rf"(?<!\w)--[\w-]{{0,32}}(?:{_NAMES})[ =]([^\s\"'`|&;<>()$\\]{{6,}})", re.IGNORECASE),
        _NAME_HINTS,
    ),
    Detector(EMAIL, re.compile(r"@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![\w-])"), ("@",), _address),
    Detector(
        HOME,
        re.compile(r"/(?:home|Users)/(?P<name>[^\s/\\:\"'`<>|*?$(){}\[\],;&=#%!~@]{1,64})"),
        ("/home/", "/Users/"),
        _account,
    ),
    Detector(
        HOME,
        re.compile(
            r"[A-Za-z]:(?P<slash>\\{1,4}|/)Users(?P=slash)"
            r"(?P<name>[^\\/:*?\"'<>|\r\n]{1,64}(?=(?P=slash))|[^\\/:*?\"'<>|\s,;)\]}`]{1,64})"
        ),
        (":\\", ":/Users"),
        _account,
    ),
    Detector(HOME, re.compile(r"(?<=/)-(?:home|Users)-([A-Za-z0-9_]+)(?=[-/])"), ("/-home-", "/-Users-")),
)
"""Our own detectors."""
