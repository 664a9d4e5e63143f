"""Secrets made up at run time, so that no scanner finds one in this repository."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable

LETTERS = string.ascii_letters + string.digits
LOWER = string.ascii_lowercase + string.digits

Maker = Callable[[random.Random], tuple[str, str]]
"""Returns a text with a secret, and the part of it that must not survive."""


def run(chance: random.Random, length: int, alphabet: str = LETTERS) -> str:
    """Return random characters, with a letter and a digit among them."""
    return "a7" + "".join(chance.choices(alphabet, k=length - 2))


def _token(prefix: str, length: int, alphabet: str = LETTERS) -> Maker:
    def make(chance: random.Random) -> tuple[str, str]:
        token = prefix + run(chance, length, alphabet)
        return token, token[len(prefix) :]

    return make


def _within(before: str, length: int, after: str = "", alphabet: str = LETTERS) -> Maker:
    def make(chance: random.Random) -> tuple[str, str]:
        value = run(chance, length, alphabet)
        return f"{before}{value}{after}", value

    return make


def _key_block(kind: str) -> Maker:
    def make(chance: random.Random) -> tuple[str, str]:
        lines = [run(chance, 64) for _ in range(4)]
        name = f"{kind}PRIVATE " + "KEY"
        return "\n".join([f"-----BEGIN {name}-----", *lines, f"-----END {name}-----"]), lines[2]

    return make


def _jwt(chance: random.Random) -> tuple[str, str]:
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    body = base64.urlsafe_b64encode(f'{{"sub":"{run(chance, 20)}"}}'.encode()).decode().rstrip("=")
    signature = run(chance, 43)
    return f"{head}.{body}.{signature}", signature


def _email(chance: random.Random) -> tuple[str, str]:
    name = run(chance, 8, LOWER)
    return f"{name}.b@mail.{run(chance, 6, string.ascii_lowercase)}.org", name


def _home(before: str, after: str) -> Maker:
    def make(chance: random.Random) -> tuple[str, str]:
        name = "zq" + "".join(chance.choices(string.ascii_lowercase, k=6))
        return f"{before}{name}{after}", name

    return make


MAKERS: dict[str, Maker] = {
    "aws id": lambda chance: (text := "AKIA" + "".join(chance.choices(string.ascii_uppercase, k=16)), text[4:]),
    "aws key": _within("aws_secret_access_key = ", 40, alphabet=LETTERS + "/+"),
    "aws key, quoted": _within('AWS_SECRET_ACCESS_KEY="', 40, '"'),
    "github": _token("ghp_", 36),
    "github, fine-grained": _token("github_pat_", 60, LETTERS + "_"),
    "gitlab": _token("glpat-", 20),
    "openai": _token("sk-proj-", 90, LETTERS + "_-"),
    "anthropic": _token("sk-ant-api03-", 90, LETTERS + "_-"),
    "hugging face": _token("hf_", 34),
    "google": _token("AIza", 35),
    "slack": lambda chance: (text := f"xoxb-{chance.randrange(10**11)}-{run(chance, 24)}", text[-20:]),
    "stripe": _token("sk_live_", 24),
    "stripe, long": _token("rk_live_", 99),
    "sendgrid": lambda chance: (text := f"SG.{run(chance, 22)}.{run(chance, 43)}", text[-30:]),
    "npm": _token("npm_", 36),
    "npmrc": _within("//registry.npmjs.org/:_authToken=", 36, alphabet=LOWER),
    "pypi": _token("pypi-AgEIcHlwaS5vcmc", 90),
    "jwt": _jwt,
    "bearer": _within("Authorization: Bearer ", 40),
    "basic": _within('"Authorization": "Basic ', 24, '"'),
    "cookie": _within("Set-Cookie: sid=", 24, "; Path=/"),
    "address": _within("postgres://app:", 12, "@db.internal:5432/app"),
    "environment": _within("export SERVICE_TOKEN=", 24),
    "environment, letters": lambda chance: (
        f"DB_PASSWORD={(value := ''.join(chance.choices(string.ascii_lowercase, k=14)))}",
        value,
    ),
    "json": _within('{"client_secret": "', 32, '", "a": 1}'),
    "json in json": _within('{\\"api_key\\": \\"', 32, '\\"}'),
    "yaml": _within("password: ", 14),
    "python": lambda chance: (f"password = '{(value := 'hunter' + chance.choice(LOWER) * 3)}'", value),
    "flag": _within("login --token ", 24),
    "header": _within("X-Api-Key: ", 32),
    "presigned": _within("https://b.s3.amazonaws.com/k?X-Amz-Signature=", 64, alphabet=string.hexdigits),
    "rsa": _key_block("RSA "),
    "openssh": _key_block("OPENSSH "),
    "pkcs8": _key_block(""),
    "key, cut": lambda chance: ("-----BEGIN PRIVATE " + f"KEY-----\n{(line := run(chance, 64))}\n", line),
    "key, in json": lambda chance: (
        "-----BEGIN PRIVATE " + f"KEY-----\\n{(line := run(chance, 64))}\\n-----END PRIVATE KEY-----\\n",
        line,
    ),
    "e-mail": _email,
    "home": _home("/home/", "/src/a.py"),
    "home, mac": _home("cd /Users/", ""),
    "home, other mount": _home("/mnt/c/Users/", "/x"),
    "home, windows": _home("C:\\Users\\", "\\a.txt"),
    "home, windows in json": _home("C:\\\\Users\\\\", "\\\\a.txt"),
    "home, in a name": _home("projects/-home-", "-code/x"),
}
"""Makers of secrets, by kind."""
