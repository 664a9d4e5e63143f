"""A minimal server on the standard library: `tiny_server.py PORT [OPTION…]`.

--sick: /health answers 503; --end CODE: it ends after its start; --deaf: it ignores SIGTERM; --child: so does a child.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


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
