"""A loopback server that samples from a tiny model, with the requests and answers of vLLM and SGLang, and with faults.

It shares the model's architecture with the policy, but no sampling code: it computes one forward pass over the whole
sequence per token.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from echo_cli.models.tiny import CONFIG_FILE, TinyConfig, TinyModel

JsonObject = dict[str, Any]


def load(folder: Path) -> TinyModel:
    model = TinyModel(TinyConfig(**json.loads((folder / CONFIG_FILE).read_text())))
    model.load(folder)
    return model.requires_grad_(False)


class StandInEndpoint:
    """Server that serves `base` as "policy" until other weights are announced.

    `processed`: logprobs are of the sampling distribution, else at temperature 1. `own_stops`: tokens at which it stops
    without a request. `alter` changes an answer to /v1/completions before it is sent. `statuses` are the answers to the
    next requests of any kind. `load` reads weights, or ignores them. After `lives` completions the server is gone.
    """

    def __init__(self, base: TinyModel) -> None:
        self.models = {"policy": base}
        self.version = "default"
        self.processed = True
        self.own_stops: set[int] = set()
        self.alter: Callable[[JsonObject, JsonObject], Any] = lambda answer, body: None
        self.statuses: list[int] = []
        self.load = load
        self.lives = 10**9
        self.requests: list[tuple[str, JsonObject]] = []
        self.authorizations: set[str | None] = set()
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def bodies(self, path: str) -> list[JsonObject]:
        return [body for at, body in self.requests if at == path]

    def answer(self, path: str, body: JsonObject, authorization: str | None) -> tuple[int, str]:
        """Return status and text."""
        with self._lock:
            self.requests.append((path, body))
            self.authorizations.add(authorization)
            if self.statuses:
                return self.statuses.pop(0), json.dumps({"error": {"message": f"not\nfor {authorization}"}})
        if path == "/v1/completions":
            with self._lock:
                self.running += 1
                self.most_running = max(self.most_running, self.running)
            try:
                return self._complete(body)
            finally:
                with self._lock:
                    self.running -= 1
        if path == "/update_weights_from_disk":
            self.models["policy"] = self.load(Path(body["model_path"]))
            self.version = body["weight_version"]
            return 200, json.dumps({"success": True, "message": "Succeeded to update model weights."})
        if path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.models:
                return 400, json.dumps({"error": {"message": "has already been loaded"}})
            self.models[body["lora_name"]] = self.load(Path(body["lora_path"]))
            return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
        if path == "/v1/unload_lora_adapter":
            if self.models.pop(body["lora_name"], None) is None:
                return 404, json.dumps({"error": {"message": "cannot be found"}})
            return 200, "Success"
        return 404, json.dumps({"detail": "Not Found"})

    def _complete(self, body: JsonObject) -> tuple[int, str]:
        if body["model"] not in self.models:
            return 404, json.dumps({"error": {"message": f"The model `{body['model']}` does not exist."}})
        self.lives -= 1
        if self.lives < 0:
            raise ConnectionAbortedError
        token_ids, logprobs, stopped = self._sample(body)
        choice: JsonObject = {
            "finish_reason": "length" if stopped is None else "stop",
            "matched_stop": stopped,
            "token_ids": token_ids,
            "logprobs": {"token_logprobs": logprobs},
        }
        answer: JsonObject = {"choices": [choice]}
        if body["model"] == "policy":  # SGLang's wording
            answer["metadata"] = {"weight_version": self.version}
        self.alter(answer, body)
        return 200, json.dumps(answer)

    @torch.inference_mode()
    def _sample(self, body: JsonObject) -> tuple[list[int], list[float], int | None]:
        model, generator = self.models[body["model"]], torch.Generator().manual_seed(body["seed"])
        stops = {*body["stop_token_ids"], *(() if body["ignore_eos"] else self.own_stops)}
        token_ids: list[int] = []
        logprobs: list[float] = []
        while len(token_ids) < body["max_tokens"]:
            logits_V = model.head(model(torch.tensor([[*body["prompt"], *token_ids]]))[0, -1])
            scaled_V = torch.log_softmax(logits_V / body["temperature"], dim=-1)
            token = int(torch.multinomial(scaled_V.exp(), 1, generator=generator))
            said_V = scaled_V if self.processed else torch.log_softmax(logits_V, dim=-1)
            token_ids.append(token)
            logprobs.append(float(said_V[token]))
            if token in stops:
                return token_ids, logprobs, token
        return token_ids, logprobs, None


def _handler(endpoint: StandInEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, text = endpoint.answer(self.path, body, self.headers["Authorization"])
            except ConnectionAbortedError:
                self.close_connection = True
                return
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
