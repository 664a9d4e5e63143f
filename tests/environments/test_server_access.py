"""Who may use our servers: hosts, origins and tokens, on every route, and a page in a real Chromium."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from loopback import environment
from tiny_run import error_of

from echo_cli.cli.main import main
from echo_cli.config.environment import EnvironmentConfig, ProviderConfig
from echo_cli.config.episodes.tasks import TasksConfig
from echo_cli.config.toy_terminal import ToyTerminalConfig
from echo_cli.environments.worlds import open_source
from toy_terminal_env.server import process
from toy_terminal_env.server.access import Access, Guard, allowed_host, new_access

TOKEN = "a-token"
BEARER = ("Authorization", f"Bearer {TOKEN}")
SERVERS = ("toy_terminal_env", "sandbox_env")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def _status(access: Access, *headers: tuple[str, str], path: str = "/schema", kind: str = "http") -> int:
    """Return the status with which a request is refused, or 200."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    refusal = access.refusal({"type": kind, "method": "GET", "path": path, "headers": raw})
    return 200 if refusal is None else refusal.status


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 127.0.0.1:8000 127.8.9.1 localhost LocalHost:80 localhost. [::1] [::1]:8000 [0:0:0:0:0:0:0:1] "
    "127.0.0.1.:8000".split(),
)
def test_loopback_may_be_named_in_every_way(host: str) -> None:
    assert _status(Access(TOKEN), ("Host", host), BEARER) == 200
    assert _status(Access(TOKEN), ("Host", host), BEARER, kind="websocket") == 200


@pytest.mark.parametrize(
    "host",
    [
        *"evil.example 127.0.0.1.evil.example localhost.evil.example x:8000 xlocalhost localhost.. :80".split(),
        *"0.0.0.0 10.0.0.1 2130706433 0x7f000001 0177.0.0.1 127.1 127.0.0.01 127.0.0.1:x 127.0.0.1:800000".split(),
        *"::1 [::] [::ffff:10.0.0.1] [::1 [127.0.0.1] [::1%25lo] a@127.0.0.1 127.0.0.1/ 127.0.0.1,a.example".split(),
        *("", "127.0.0.1 x", "localhost\xa0", "\u00b9"),
    ],
)
def test_another_name_is_refused_whatever_the_token(host: str) -> None:
    for path in ("/schema", "/health"):
        assert _status(Access(TOKEN), ("Host", host), BEARER, path=path) == 403


def test_one_host_header_is_needed() -> None:
    assert _status(Access(TOKEN), BEARER) == 403
    assert _status(Access(TOKEN), ("Host", "localhost"), ("Host", "localhost"), BEARER) == 403
    assert _status(Access(TOKEN), ("Host", "localhost"), ("host", "evil.example"), BEARER) == 403


def test_an_allowed_host_is_one_name_with_any_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECHO_SERVER_TOKEN", TOKEN)
    monkeypatch.setenv("ECHO_SERVER_HOSTS", "toy, 10.0.0.1")
    access = new_access(["Box.Example.", "fe80::0:1"])
    for host in ("box.example", "BOX.example.:90", "toy:8000", "10.0.0.1", "[fe80::1]:8000", "localhost"):
        assert _status(access, ("Host", host), BEARER) == 200, host
    for host in ("a.box.example", "box.example.evil", "toys", "10.0.0.10", "[fe80::2]"):
        assert _status(access, ("Host", host), BEARER) == 403, host


@pytest.mark.parametrize("name", ["", "*", "a:80", "http://a", "a b", "[::1]:80", "a,b", "bücher.example", "."])
def test_what_is_no_host_cannot_be_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="is not a host name"):
        allowed_host(name)


@pytest.mark.parametrize("name", ["Origin", "Sec-Fetch-Site", "sec-fetch-mode"])
@pytest.mark.parametrize("value", ["https://evil.example", "null", "http://127.0.0.1:8000", "same-origin", ""])
def test_a_browser_is_refused_whatever_its_host_and_token(name: str, value: str) -> None:
    for path, kind in (("/schema", "http"), ("/health", "http"), ("/ws", "websocket")):
        headers = [("Host", "127.0.0.1:8000"), BEARER, (name, value)]
        assert _status(Access(TOKEN), *headers, path=path, kind=kind) == 403


def test_the_token_is_needed_by_all_but_the_health_check() -> None:
    host = ("Host", "127.0.0.1")
    for value in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer é",
    ):
        assert _status(Access(TOKEN), host, ("Authorization", value)) == 401, value
    assert _status(Access(TOKEN), host) == 401
    assert _status(Access(TOKEN), host, BEARER, BEARER) == 401
    assert _status(Access(TOKEN), host, ("Authorization", f"bearer  {TOKEN}")) == 200
    assert _status(Access(TOKEN), host, path="/health") == 200
    for path in ("/health/", "/Health", "/ws", "/web/health", "//health"):
        assert _status(Access(TOKEN), host, path=path) == 401, path
    assert _status(Access(TOKEN), host, path="/health", kind="websocket") == 401


def test_a_start_has_a_token_of_its_own_unless_one_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ECHO_SERVER_TOKEN", raising=False)
    first, second = new_access(), new_access()
    assert first.token != second.token and min(len(first.token), len(second.token)) >= 40
    assert first.token not in repr(first)
    monkeypatch.setenv("ECHO_SERVER_TOKEN", TOKEN)
    assert new_access().token == TOKEN
    monkeypatch.setenv("ECHO_SERVER_TOKEN", "two words")
    with pytest.raises(ValueError, match="one word"):
        new_access()


def _asked(app: Any, kind: str, path: str, method: str) -> list[Mapping[str, Any]]:
    """Send a request of another origin to an ASGI application; return what it answers."""
    answers: list[Mapping[str, Any]] = []
    headers = [(b"host", b"127.0.0.1"), (b"authorization", b"Bearer a-token"), (b"origin", b"https://evil.example")]
    scope = {"type": kind, "path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers}
    scope |= {"method": method, "root_path": "", "scheme": "http", "subprotocols": []}

    async def receive() -> Mapping[str, Any]:
        return {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b"{}"}

    async def send(message: Mapping[str, Any]) -> None:
        answers.append(message)

    asyncio.run(app(scope, receive, send))
    return answers


def _routes(app: Any) -> Iterator[tuple[str, str]]:
    """Yield kind and path of all routes of an application, mounted applications included."""
    for route in app.routes:
        place = getattr(route, "path", "")
        yield ("websocket" if "WebSocket" in type(route).__name__ else "http"), place or "/"
        for kind, path in _routes(route) if getattr(route, "routes", None) else ():
            yield kind, f"{place}{path}"


@pytest.mark.parametrize("with_pages", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SERVERS)
def test_no_route_of_the_application_is_behind_the_guard(
    name: str, with_pages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openenv")
    monkeypatch.setenv("ENABLE_WEB_INTERFACE", str(with_pages))
    make: dict[str, Callable[[], Any]] = {"toy_terminal_env": _toy_app, "sandbox_env": _sandbox_app}
    app = make[name]()
    routes = {*_routes(app), ("http", "/no-such-path"), ("websocket", "/no-such-path")}
    assert {("websocket", "/ws"), ("http", "/docs"), ("http", "/step")} <= routes
    assert with_pages == any(path.startswith("/web") for _, path in routes)
    for kind, path in routes:
        for method in ("GET", "POST", "OPTIONS"):
            answers = _asked(app, kind, path.replace("{", "").replace("}", ""), method)
            assert (answers[0].get("status"), answers[0].get("code")) in ((403, None), (None, 1008)), (path, answers)


def _toy_app() -> Any:
    from toy_terminal_env.server.serve import make_app

    return make_app(1, 5, Access(TOKEN))


def _sandbox_app() -> Any:
    from sandbox_env.server.serve import make_app

    return make_app("none", Access(TOKEN))


def test_the_guard_passes_what_is_no_request() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(app, Access(TOKEN))({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


# --- Real servers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Server:
    """A server that was started by hand, without a token in its environment, and the lines that it printed."""

    name: str
    port: int
    connect: str
    stderr: Path

    @property
    def token(self) -> str:
        return self.connect.partition("ECHO_SERVER_TOKEN=")[2].partition(";")[0]


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Server]:
    """Provide each server in turn, which also listens for a client that calls it `box`."""
    pytest.importorskip("openenv")
    stderr = tmp_path_factory.mktemp("server") / "stderr"
    options = ["--isolation", "none"] if request.param == "sandbox_env" else []
    variables = {key: value for key, value in environment().items() if key != "ECHO_SERVER_TOKEN"}
    with stderr.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{request.param}.server", "--port", "0", "--allow-host", "box", *options],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=variables,
        )
    assert process.stdout is not None
    try:
        ready, connect = process.stdout.readline(), process.stdout.readline()
        assert ready.startswith(f"{request.param} on http://127.0.0.1:"), stderr.read_text()
        yield _Server(request.param, int(ready.rpartition(":")[2]), connect.strip(), stderr)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _answer(server: _Server, path: str, *headers: tuple[str, str], method: str = "GET") -> tuple[int, str]:
    """Send exactly these headers; return status and text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    with connection.getresponse() as reply:
        answer = reply.status, reply.read().decode()
    connection.close()
    return answer


HANDSHAKE = (
    *(("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13")),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
)


def test_a_real_server_answers_programs_that_know_its_token(server: _Server) -> None:
    host, bearer = ("Host", f"127.0.0.1:{server.port}"), ("Authorization", f"Bearer {server.token}")
    assert _answer(server, "/schema", host, bearer)[0] == _answer(server, "/docs", host, bearer)[0] == 200
    for path, more in (("/schema", ()), ("/docs", ()), ("/ws", HANDSHAKE)):
        assert _answer(server, path, ("Host", "box"), *more)[0] == 401
        assert _answer(server, path, host, *more)[0] == 401
        for refused in (
            (host, bearer, ("Origin", f"http://127.0.0.1:{server.port}")),
            (host, bearer, ("Origin", "null")),
            (("Host", f"evil.example:{server.port}"), bearer),
            (host, ("Host", "evil.example"), bearer),
        ):
            status, text = _answer(server, path, *refused, *more)
            assert status in (400, 403) and "action" not in text, (path, refused, status)
    assert _answer(server, "/health", host) == (200, '{"status":"healthy"}')
    assert _answer(server, "/health", ("Host", "evil.example"))[0] == 403
    assert server.token not in server.stderr.read_text()


def test_the_printed_line_connects(
    server: _Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export, _, command = server.connect.removeprefix("connect: ").partition("; ")
    words = shlex.split(command)
    assert words[:2] == ["echo-cli", "train"] and server.token not in command
    assert shlex.split(export) == ["export", f"ECHO_SERVER_TOKEN={server.token}"]
    check = ["env", "check", "toy" if server.name == "toy_terminal_env" else "sandbox", *words[2:]]
    monkeypatch.setenv("ECHO_SERVER_TOKEN", "another")
    assert main(check) == 1
    assert "HTTP 401: the Authorization header must be 'Bearer'" in error_of(capsys.readouterr().err)[0]
    monkeypatch.setenv("ECHO_SERVER_TOKEN", server.token)
    assert main(check) == 0
    captured = capsys.readouterr()
    assert "env_output stdout" in captured.out
    about = {
        "toy_terminal_env": "A deterministic, read-only terminal",
        "sandbox_env": "real bash; commands run with the",
    }
    assert f"env check: the environment's description: {about[server.name]}" in captured.err


@pytest.mark.parametrize(
    ("host", "names", "url"),
    [
        ("127.0.0.1", ["box"], "http://127.0.0.1:"),
        ("0.0.0.0", [], "http://127.0.0.1:"),
        ("0.0.0.0", ["box"], "http://box:"),
    ],
)
def test_the_line_for_clients_elsewhere_says_what_they_need(
    host: str, names: list[str], url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openenv")
    monkeypatch.setattr(process, "_run", lambda app, listener, on_ready: on_ready())
    chosen = argparse.Namespace(host=host, port=0, allow_host=names)
    assert process.serve("toy", lambda access: Any, chosen) == 0
    printed, said = capsys.readouterr()
    words = shlex.split(printed.splitlines()[1].partition("; ")[2])
    assert words[:2] == ["echo-cli", "train"] and words[-2].startswith(f"environment.url={url}")
    remote = "box" in url
    assert ("--allow-plain-http" in words) == ("anyone on the way can read" in said) == ("ssh -L" in said) == remote


def test_the_trainer_passes_a_token_to_the_server_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openenv")
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("ECHO_SERVER_TOKEN", "of the user")
    provider = ProviderConfig(
        kind="process", command=(sys.executable, "-m", "toy_terminal_env.server", "--port", "{port}")
    )
    settings = EnvironmentConfig(provider=provider, tasks=TasksConfig(toy_terminal=ToyTerminalConfig()))
    with open_source(settings, 1) as source:
        assert source.describe().name == "toy_terminal_env"
        token = source.address.headers["Authorization"].removeprefix("Bearer ")  # type: ignore[attr-defined]
        assert len(token) >= 40 and source.address.line(token) == "${ECHO_SERVER_TOKEN}"  # type: ignore[attr-defined]

        async def opening(client: Any) -> dict[str, Any]:
            try:
                payload = await client.reset({"seed": 0})
                return dict(payload.observation)
            finally:
                await client.close()

        assert asyncio.run(opening(source.client()))["instruction"]
        typed = settings.model_copy(update={"client": "toy_terminal_env.client:ToyTerminalEnv"})
        from echo_cli.environments.openenv.session import SessionLimits
        from echo_cli.environments.openenv.typed_client import TypedSource

        own = TypedSource(
            str(typed.client),
            source.address.http,  # type: ignore[attr-defined]
            source,
            SessionLimits(),
            headers=source.address.headers,  # type: ignore[attr-defined]
            headers_needed=False,
        )
        assert asyncio.run(opening(own.client()))["instruction"]


PAGE = """<!doctype html><title>evil</title><script>
const server = "127.0.0.1:PORT", action = {command: "touch MARKER"}, said = {};
async function tried(name, attempt) {
  const late = new Promise(done => setTimeout(() => done("open"), 10000));
  said[name] = await Promise.race([attempt().catch(() => "failed"), late]);
}
function socket(path, messages) {
  return new Promise(done => {
    const got = [], open = new WebSocket(`ws://${server}${path}`);
    open.onopen = () => { got.push("open"); messages.forEach(one => open.send(JSON.stringify(one))); };
    open.onmessage = event => { got.push(event.data); if (got.length > messages.length) done(got.join()); };
    open.onclose = () => done(got.join() || "closed");
  });
}
function frame(fill) {
  return new Promise(done => {
    const made = document.createElement("iframe");
    made.name = `frame${document.querySelectorAll("iframe").length}`;
    document.body.append(made);
    made.onload = () => done("loaded");
    fill(made);
  });
}
function form(path, text) {
  return frame(made => {
    const sent = document.createElement("form"), field = document.createElement("input");
    const [name, value] = text.split("~");
    Object.assign(field, {name, value, type: "hidden"});
    Object.assign(sent, {action: `http://${server}${path}`, method: "post", enctype: "text/plain", target: made.name});
    sent.append(field);
    document.body.append(sent);
    sent.submit();
  });
}
async function attack() {
  const post = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({action})};
  await tried("socket", () => socket("/ws", [{type: "reset", data: {}}, {type: "step", data: action}]));
  await tried("mcp", () => socket("/mcp", []));
  await tried("ui", () => socket("/ws/ui", []));
  for (const path of ["/schema", "/health", "/metadata", "/docs"]) {
    await tried(path, async () => (await fetch(`http://${server}${path}`)).status);
  }
  for (const path of ["/reset", "/step", "/mcp", "/web/reset", "/web/step"]) {
    await tried(`cors ${path}`, async () => (await fetch(`http://${server}${path}`, post)).status);
    await tried(`plain ${path}`, async () => (await fetch(`http://${server}${path}`,
      {method: "POST", mode: "no-cors", body: JSON.stringify({action})})).type);
    await tried(`form ${path}`, () => form(path, '{"action": {"command": "touch MARKER", "x": "~"}}'));
  }
  for (const path of ["/docs", "/web/", "/ws", "/health"]) {
    await tried(`frame ${path}`, () => frame(made => { made.src = `http://${server}${path}`; }));
  }
  return said;
}
</script><body></body>"""


@pytest.fixture
def page(server: _Server, tmp_path: Path) -> Iterator[str]:
    """URL of a page of another origin on loopback that attacks the server."""
    text = PAGE.replace("PORT", str(server.port)).replace("MARKER", str(tmp_path / "marker"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_address[1]}/"
        web.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_page_in_a_real_browser_gets_nothing(server: _Server, page: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    rebound = "--host-resolver-rules=MAP evil.example 127.0.0.1"
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", rebound]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        visit = browser.new_page()
        visit.goto(page)
        said = visit.evaluate("attack()")
        frames = [frame.evaluate("document.documentElement.innerText") for frame in visit.frames[1:]]
        # DNS rebinding: the page has the server's own origin, under another name.
        status = visit.goto(f"http://evil.example:{server.port}/docs").status
        read = visit.evaluate("async () => (await fetch('/metadata')).status")
        browser.close()
    assert said.pop("socket") == said.pop("mcp") == said.pop("ui") == "closed"
    reached = {key: value for key, value in said.items() if key.startswith(("plain", "form", "frame"))}
    assert set(reached.values()) <= {"opaque", "loaded"} and len(reached) == 14  # sent, and not readable
    assert {value for key, value in said.items() if key not in reached} == {"failed"}
    assert len(frames) == 9 and all("a web page may not use this server" in text for text in frames), frames
    assert (status, read) == (403, 403)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--allow-host", "a:80"], "argument --allow-host: 'a:80' is not a host name or an address"),
        (["--allow-host", "*"], "argument --allow-host: '*' is not a host name or an address"),
        (["--host", "not a host"], "'not a host' is not a host name or an address"),
    ],
)
@pytest.mark.parametrize("name", SERVERS)
def test_a_bad_host_is_one_line(name: str, arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"{name}.server", *arguments], capture_output=True, text=True, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def test_a_bad_token_is_one_line() -> None:
    variables = {**environment(), "ECHO_SERVER_TOKEN": "two words"}
    for module in ("toy_terminal_env.server", "sandbox_env.server"):
        done = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, env=variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ECHO_SERVER_TOKEN must be one word") and done.stderr.count("\n") == 1
