"""A minimal server on the standard library: `tiny_server.py PORT [OPTION…]`.

--sick: /health answers 503; --end CODE: it ends after its start; --deaf: it ignores SIGTERM; --child: so does a child.
--eat MIB: it takes memory; --family COUNT MIB: so do children in groups of their own; --write MIB: it writes a file;
--print MIB: it prints lines.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HUNGRY = "import sys, time; n = int(sys.argv[1]) << 20; taken = bytearray(b'x') * n; time.sleep(600)"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = {"argv": sys.argv, "pid": os.getpid(), "group": os.getpgrp(), "env": dict(os.environ)}
        self.send_response(503 if "--sick" in sys.argv else 200)
        self.end_headers()
        self.wfile.write(json.dumps(known).encode())

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    if "--child" in sys.argv:
        stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print(1, flush=True); signal.pause()"
        child = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()
    if "--eat" in sys.argv:
        taken = bytearray(int(sys.argv[sys.argv.index("--eat") + 1]) << 20)
    if "--write" in sys.argv:
        with tempfile.TemporaryFile(buffering=0) as file:
            for _ in range(int(sys.argv[sys.argv.index("--write") + 1])):
                file.write(bytes(2**20))
                file.seek(0, os.SEEK_END)
    if "--print" in sys.argv:
        for number in range(int(sys.argv[sys.argv.index("--print") + 1]) * 2**14):
            print(f"{number:063d}")
    if "--family" in sys.argv:
        count, size = sys.argv[sys.argv.index("--family") + 1 :][:2]
        for _ in range(int(count)):
            subprocess.Popen([sys.executable, "-S", "-c", HUNGRY, size, *sys.argv], start_new_session=True)
    if "--deaf" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("\x1b[1mlistening\x1b[0m for", os.environ.get("TOKEN"), flush=True)
    if "--end" in sys.argv:
        code = int(sys.argv[sys.argv.index("--end") + 1])
        print("no licence", file=sys.stderr)
        if code < 0:
            os.kill(os.getpid(), -code)
        sys.exit(code)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
