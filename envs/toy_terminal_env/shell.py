"""A read-only shell over a toy world: `ls cat head tail wc grep`, with the error messages of a real shell.

Pure and deterministic: it reads only the world's dictionary of files, starts no process, and takes time linear in the
input, hostile input included.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_COMMAND_CHARS = 1000
_OPERATORS = frozenset("|&;<>()")
_SPECIAL = frozenset("^$.[]*\\")
"""Characters that have a meaning in a basic regular expression."""

Files = Mapping[str, str]


@dataclass(frozen=True)
class Result:
    """Output and exit status of a command. `stdout` precedes `stderr` in the terminal's text."""

    stdout: str = ""
    stderr: str = ""
    exit_code: int = 0


class UsageError(Exception):
    """Call of a command with options or arguments that it does not accept."""


def run(files: Files, line: str) -> Result:
    """Run one command line against `files` (absolute path -> text)."""
    if len(line) > MAX_COMMAND_CHARS:
        return Result(stderr="sh: argument list too long\n", exit_code=126)
    try:
        words = shlex.split(line)
    except ValueError:
        return Result(stderr="sh: syntax error: unterminated quoted string\n", exit_code=2)
    if not words:
        return Result()
    operator = _unquoted_operator(line)
    if operator:
        return Result(stderr=f"sh: syntax error: '{operator}' is not supported\n", exit_code=2)
    name, *arguments = words
    command = COMMANDS.get(name)
    if command is None:
        return Result(stderr=f"sh: {name}: command not found\n", exit_code=127)
    try:
        return command(files, arguments)
    except UsageError as error:
        return Result(stderr=f"{name}: {error}\n", exit_code=2)


def _unquoted_operator(line: str) -> str:
    """Return the first run of operator characters outside quotes, or "". The quotes of `line` must be balanced."""
    quote, operator = "", ""
    characters = iter(line)
    for character in characters:
        if not quote and character in _OPERATORS:
            operator += character
        elif operator:
            return operator
        elif character == "\\" and quote != "'":
            next(characters)
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
    return operator


@dataclass(frozen=True)
class _Options:
    flags: frozenset[str]
    number: int | None
    operands: list[str]


def _parse(arguments: list[str], flags: str, number: str | None = None) -> _Options:
    """Split `arguments` into single-letter `flags`, the value of the option `number` (or `-5`), and operands."""
    seen: set[str] = set()
    value: int | None = None
    operands: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            operands += queue
            break
        if len(word) < 2 or not word.startswith("-"):
            operands.append(word)
            continue
        if word.startswith("--"):
            raise UsageError(f"unrecognized option '{word}'")
        letters = word[1:]
        if number is not None and letters.isascii() and letters.isdigit():
            value = int(letters)
            continue
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter == number:
                text = letters or (queue.pop(0) if queue else "")
                if not text:
                    raise UsageError(f"option requires an argument -- '{letter}'")
                if not (text.isascii() and text.isdigit()):
                    raise UsageError(f"invalid number of lines: '{text}'")
                value, letters = int(text), ""
            elif letter in flags:
                seen.add(letter)
            else:
                raise UsageError(f"invalid option -- '{letter}'")
    return _Options(frozenset(seen), value, operands)


def _absolute(path: str) -> str:
    # normpath keeps two leading slashes, as POSIX allows; here they mean the root.
    return "/" + posixpath.normpath("/" + path).lstrip("/")


def _directories(files: Files) -> set[str]:
    found = {"/"}
    for path in files:
        while path != "/":
            path = posixpath.dirname(path)
            found.add(path)
    return found


def _read(files: Files, command: str, path: str) -> tuple[str | None, str]:
    """Return the text of `path`, or None and the error line that a real tool prints."""
    absolute = _absolute(path)
    if path and absolute in files:
        if path.endswith("/"):
            return None, f"{command}: {path}: Not a directory\n"
        return files[absolute], ""
    if path and absolute in _directories(files):
        return None, f"{command}: {path}: Is a directory\n"
    return None, f"{command}: {path}: {_why_missing(files, path)}\n"


def _why_missing(files: Files, path: str) -> str:
    """Return the system's error for a `path` that is neither file nor directory, but may pass through a file."""
    parts = path.split("/")
    through = (_absolute("/".join(parts[:end])) for end in range(1, len(parts)))
    return "Not a directory" if any(prefix in files for prefix in through) else "No such file or directory"


def _lines(text: str) -> list[str]:
    """Return the lines of `text` with their newlines. Only a newline ends a line, unlike in str.splitlines."""
    *ended, rest = text.split("\n")
    return [line + "\n" for line in ended] + ([rest] if rest else [])


def _ls(files: Files, arguments: list[str]) -> Result:
    options = _parse(arguments, flags="la1")
    long = "l" in options.flags
    directories = _directories(files)
    listed_files, listings, errors = "", [], ""
    for operand in options.operands or ["/"]:
        path = _absolute(operand)
        if path in files and not operand.endswith("/"):
            listed_files += _entry(files, path, operand, long)
        elif path in directories and operand:
            children = sorted(p for p in (*files, *directories) if p != "/" and posixpath.dirname(p) == path)
            listings.append((operand, "".join(_entry(files, p, posixpath.basename(p), long) for p in children)))
        else:
            errors += f"ls: cannot access '{operand}': {_why_missing(files, operand)}\n"
    headed = len(options.operands) > 1
    blocks = [listed_files] if listed_files else []
    blocks += [(f"{name}:\n" if headed else "") + text for name, text in listings]
    return Result("\n".join(blocks), errors, 2 if errors else 0)


def _entry(files: Files, path: str, name: str, long: bool) -> str:
    if not long:
        return name + "\n"
    kind, size = ("-", len(files[path].encode())) if path in files else ("d", 0)
    return f"{kind}r--r--r-- {size:>4} {name}\n"


def _cat(files: Files, arguments: list[str]) -> Result:
    options = _parse(arguments, flags="n")
    if not options.operands:
        raise UsageError("missing file operand")
    output, errors = "", ""
    for path in options.operands:
        text, error = _read(files, "cat", path)
        output += text or ""
        errors += error
    if "n" in options.flags:
        output = "".join(f"{i:>4} {line}" for i, line in enumerate(_lines(output), start=1))
    return Result(output, errors, 1 if errors else 0)


def _head(files: Files, arguments: list[str]) -> Result:
    return _edge(files, "head", arguments)


def _tail(files: Files, arguments: list[str]) -> Result:
    return _edge(files, "tail", arguments)


def _edge(files: Files, command: str, arguments: list[str]) -> Result:
    options = _parse(arguments, flags="", number="n")
    if not options.operands:
        raise UsageError("missing file operand")
    count = 10 if options.number is None else options.number
    blocks, errors = [], ""
    for path in options.operands:
        text, error = _read(files, command, path)
        doing = f"error reading '{path}'" if error.endswith("Is a directory\n") else f"cannot open '{path}' for reading"
        errors += error.replace(f"{command}: {path}", f"{command}: {doing}", 1)
        if text is None:
            continue
        lines = _lines(text)
        kept = lines[:count] if command == "head" else lines[max(0, len(lines) - count) :]
        blocks.append((f"==> {path} <==\n" if len(options.operands) > 1 else "") + "".join(kept))
    return Result("\n".join(blocks), errors, 1 if errors else 0)


def _wc(files: Files, arguments: list[str]) -> Result:
    options = _parse(arguments, flags="lwc")
    if not options.operands:
        raise UsageError("missing file operand")
    wanted = [letter in options.flags or not options.flags for letter in "lwc"]
    rows: list[tuple[list[int], str]] = []
    errors = ""
    for path in options.operands:
        text, error = _read(files, "wc", path)
        errors += error
        if text is not None:
            # Bytes split at ASCII white space only, as the real tool does in the C locale.
            rows.append(([text.count("\n"), len(text.encode().split()), len(text.encode())], path))
    if len(options.operands) > 1:
        rows.append(
            ([sum(column) for column in zip(*(counts for counts, _ in rows), strict=True)] or [0, 0, 0], "total")
        )
    output = "".join(
        " ".join([*(str(n) for n, keep in zip(counts, wanted, strict=True) if keep), name]) + "\n"
        for counts, name in rows
    )
    return Result(output, errors, 1 if errors else 0)


def _grep(files: Files, arguments: list[str]) -> Result:
    options = _parse(arguments, flags="nlcivrFhH")
    if not options.operands:
        raise UsageError("usage: grep [-cilnrv] PATTERN FILE...")
    pattern, *paths = options.operands
    flags = options.flags
    if not paths and "r" not in flags:
        raise UsageError("usage: grep [-cilnrv] PATTERN FILE...")
    matches = _matcher(pattern, fixed="F" in flags, ignore_case="i" in flags)
    operands = paths or ["/"]
    if "r" in flags:
        operands = [inner for path in operands for inner in _walk(files, path)]
    named = ("H" in flags or len(operands) > 1 or operands != paths) and "h" not in flags
    output, errors, matched = "", "", False
    for path in operands:
        text, error = _read(files, "grep", path)
        errors += error
        if text is None:
            continue
        lines = enumerate((line.removesuffix("\n") for line in _lines(text)), start=1)
        hits = [(i, line) for i, line in lines if matches(line) != ("v" in flags)]
        matched = matched or bool(hits)
        prefix = f"{path}:" if named else ""
        if "l" in flags:
            output += f"{path}\n" if hits else ""
        elif "c" in flags:
            output += f"{prefix}{len(hits)}\n"
        else:
            output += "".join(f"{prefix}{f'{i}:' if 'n' in flags else ''}{line}\n" for i, line in hits)
    return Result(output, errors, 2 if errors else 0 if matched else 1)


def _walk(files: Files, path: str) -> list[str]:
    root = _absolute(path)
    top = root.rstrip("/") + "/"
    below = [f"{path.rstrip('/')}/{name.removeprefix(top)}" for name in files if name.startswith(top)]
    return below or [path]


def _matcher(pattern: str, *, fixed: bool, ignore_case: bool) -> Callable[[str], bool]:
    """Return a line matcher for a basic regular expression (`^ $ . [] *` and `\\` escapes), or a fixed string.

    The automaton is simulated on sets of states, so that no pattern can backtrack.

    Raises:
        UsageError: the pattern has an unmatched bracket or ends in a backslash.
    """
    if ignore_case:
        pattern = pattern.lower()

    def fold(line: str) -> str:
        return line.lower() if ignore_case else line

    if fixed or not _SPECIAL & set(pattern):
        return lambda line: pattern in fold(line)
    anchored_start, anchored_end, atoms = _compile(pattern)
    last = len(atoms)

    def closure(states: set[int]) -> set[int]:
        reached = set(states)
        for state in range(last):
            if state in reached and atoms[state][1]:
                reached.add(state + 1)
        return reached

    def matches(line: str) -> bool:
        states = closure({0})
        for character in fold(line):
            if last in states and not anchored_end:
                return True
            moved = {0} if not anchored_start else set()
            for state in states:
                if state < last and atoms[state][0](character):
                    moved.add(state if atoms[state][1] else state + 1)
            states = closure(moved)
        return last in states

    return matches


_Atom = tuple[Callable[[str], bool], bool]


def _compile(pattern: str) -> tuple[bool, bool, list[_Atom]]:
    start = pattern.startswith("^")
    pattern = pattern[1:] if start else pattern
    before_end = pattern.removesuffix("$")
    escapes = len(before_end) - len(before_end.rstrip("\\"))
    end = pattern.endswith("$") and escapes % 2 == 0
    pattern = pattern[:-1] if end else pattern
    atoms: list[_Atom] = []
    i = 0
    while i < len(pattern):
        character = pattern[i]
        i += 1
        if character == "*" and atoms:
            atoms[-1] = (atoms[-1][0], True)
        elif character == ".":
            atoms.append((lambda _: True, False))
        elif character == "[":
            # A bracket that comes first, or first after the ^, belongs to the set.
            close = pattern.find("]", i + (2 if pattern[i : i + 1] == "^" else 1))
            if close < 0:
                raise UsageError("Unmatched [, [^, [:, [., or [=")
            atoms.append((_bracket(pattern[i:close]), False))
            i = close + 1
        else:
            if character == "\\":
                if i == len(pattern):
                    raise UsageError("Trailing backslash")
                character = pattern[i]
                i += 1
            atoms.append((character.__eq__, False))
    return start, end, atoms


def _bracket(body: str) -> Callable[[str], bool]:
    negated = body.startswith("^")
    body = body[1:] if negated else body
    ranges: list[tuple[str, str]] = []
    i = 0
    while i < len(body):
        if i + 2 < len(body) and body[i + 1] == "-":
            ranges.append((body[i], body[i + 2]))
            i += 3
        else:
            ranges.append((body[i], body[i]))
            i += 1
    return lambda character: any(low <= character <= high for low, high in ranges) != negated


COMMANDS: Mapping[str, Callable[[Files, list[str]], Result]] = {
    "ls": _ls,
    "cat": _cat,
    "head": _head,
    "tail": _tail,
    "wc": _wc,
    "grep": _grep,
}
