"""A loopback service that speaks the Tinker protocol, with a bigram model, *sum* reduction, and faults.

Its only parameters are an adapter's additions to a table of logits, the next token's by the last token, so that a test
can compute what it should hold. It keeps every request's bytes.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

JsonObject = dict[str, Any]
BASE = "bigram"


class _Adapter:
    """An adapter with its optimizer."""

    def __init__(self, vocab: int) -> None:
        self.table_VV = torch.zeros(vocab, vocab, requires_grad=True)
        self.optimizer = torch.optim.AdamW([self.table_VV], lr=0.0)

    def state(self) -> JsonObject:
        return {"table": self.table_VV.detach().clone(), "optimizer": _copied(self.optimizer.state_dict())}

    def load(self, state: JsonObject) -> None:
        with torch.no_grad():
            self.table_VV.copy_(state["table"])
        self.optimizer.load_state_dict(_copied(state["optimizer"]))


class StandInService:
    """Service of the model `BASE`.

    `losses` are the ones that it knows. `clips`: whether it clips gradients. `reports_norm`: whether an optimizer step
    returns the gradient's norm. `reduce` turns the losses of a request, one [T] per sequence, into its loss. `statuses`
    are the HTTP statuses of the next requests for a path, instead of answers. `silent` paths get no answer at all: the
    request is carried out and the connection ends.
    """

    def __init__(self, vocab: int = 64) -> None:
        self.vocab = vocab
        self.base_VV = torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(0))
        self.losses = {"cross_entropy", "importance_sampling", "ppo"}
        self.clips = self.reports_norm = True
        self.reduce: Callable[[list[Tensor]], Tensor] = lambda losses: torch.stack([of.sum() for of in losses]).sum()
        self.statuses: dict[str, list[int]] = {}
        self.silent: list[str] = []
        self.requests: list[tuple[str, bytes]] = []
        self.keys: set[str | None] = set()
        self.adapters: dict[str, _Adapter] = {}
        self.states: dict[str, JsonObject] = {}
        self._results: dict[str, JsonObject] = {}
        self._samplers: dict[str, Tensor] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hung up
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def sent(self, name: str) -> list[bytes]:
        """Return the bodies of the requests for a path below /api/v1/."""
        return [body for path, body in self.requests if path == name]

    def answer(self, path: str, data: bytes, key: str | None) -> tuple[int, JsonObject | bytes, bool]:
        """Return status, answer, and whether the client gets it."""
        name = path.removeprefix("/api/v1/")
        with self._lock:
            self.requests.append((name, data))
            self.keys.add(key)
            if self.statuses.get(name):
                return self.statuses[name].pop(0), {"detail": "not now"}, True
            body = json.loads(data) if data else {}
            if name.startswith("training_runs/"):
                return 200, self._archive(name.split("/")), True
            if name == "retrieve_future":
                return 200, self._results[body["request_id"]], True
            handle = getattr(self, f"_{name.replace('/', '_')}", None)
            status, found = (404, {"detail": "Not Found"}) if handle is None else handle(body)
            heard = name not in self.silent
            if not heard:
                self.silent.remove(name)
            return status, found, heard

    def _healthz(self, _: JsonObject) -> tuple[int, JsonObject]:
        return 200, {"status": "ok"}

    def _client_config(self, _: JsonObject) -> tuple[int, JsonObject]:
        return 200, {"pjwt_auth_enabled": False}

    def _create_session(self, _: JsonObject) -> tuple[int, JsonObject]:
        return 200, {"type": "create_session", "session_id": f"session-{next(self._numbers)}"}

    def _session_heartbeat(self, _: JsonObject) -> tuple[int, JsonObject]:
        return 200, {"type": "session_heartbeat"}

    def _get_server_capabilities(self, _: JsonObject) -> tuple[int, JsonObject]:
        return 200, {"supported_models": [{"model_name": BASE, "max_context_length": 2048}]}

    def _create_model(self, _: JsonObject) -> tuple[int, JsonObject]:
        name = f"model-{next(self._numbers)}"
        self.adapters[name] = _Adapter(self.vocab)
        return self._later({"model_id": name, "type": "create_model"})

    def _unload_model(self, body: JsonObject) -> tuple[int, JsonObject]:
        del self.adapters[body["model_id"]]
        return self._later({"model_id": body["model_id"], "type": "unload_model"})

    def _forward(self, body: JsonObject) -> tuple[int, JsonObject]:
        return self._pass(body, body["forward_input"], learns=False)

    def _forward_backward(self, body: JsonObject) -> tuple[int, JsonObject]:
        return self._pass(body, body["forward_backward_input"], learns=True)

    def _pass(self, body: JsonObject, request: JsonObject, *, learns: bool) -> tuple[int, JsonObject]:
        adapter, loss = self.adapters.get(body["model_id"]), request["loss_fn"]
        if adapter is None:
            return 404, {"detail": "Model not found"}
        if loss not in self.losses:
            return 422, {"detail": f"no loss {loss}"}
        losses, logprobs = [], []
        for datum in request["data"]:
            (chunk,) = datum["model_input"]["chunks"]
            arrays = {name: torch.tensor(of["data"]) for name, of in datum["loss_fn_inputs"].items()}
            all_TV = torch.log_softmax((self.base_VV + adapter.table_VV)[chunk["tokens"]], dim=-1)
            found_T = all_TV.gather(1, arrays["target_tokens"][:, None])[:, 0]
            losses.append(_losses(loss, found_T, arrays, request.get("loss_fn_config") or {}))
            logprobs.append(found_T.detach())
        if learns:
            self.reduce(losses).backward()  # type: ignore[no-untyped-call]
        outputs = [{"logprobs": {"data": of.tolist(), "dtype": "float32", "shape": [len(of)]}} for of in logprobs]
        return self._later({"loss_fn_output_type": "scalar", "loss_fn_outputs": outputs, "metrics": {}})

    def _optim_step(self, body: JsonObject) -> tuple[int, JsonObject]:
        adapter, adam = self.adapters.get(body["model_id"]), body["adam_params"]
        if adapter is None:
            return 404, {"detail": "Model not found"}
        (group,) = adapter.optimizer.param_groups
        group |= {"lr": adam["learning_rate"], "betas": (adam["beta1"], adam["beta2"])}
        group |= {"eps": adam["eps"], "weight_decay": adam["weight_decay"]}
        most = adam["grad_clip_norm"] if self.clips and adam["grad_clip_norm"] else float("inf")
        norm = torch.nn.utils.clip_grad_norm_([adapter.table_VV], most)
        adapter.optimizer.step()
        adapter.optimizer.zero_grad()
        return self._later({"metrics": {"grad_norm": float(norm)} if self.reports_norm else {}})

    def _save_weights(self, body: JsonObject) -> tuple[int, JsonObject]:
        path = f"tinker://{body['model_id']}/weights/{body['path']}"
        if path in self.states:
            return 409, {"detail": "it exists"}
        self.states[path] = self.adapters[body["model_id"]].state()
        return self._later({"path": path, "type": "save_weights"})

    def _load_weights(self, body: JsonObject) -> tuple[int, JsonObject]:
        if body["path"] not in self.states:
            return 404, {"detail": "Checkpoint not found"}
        self.adapters[body["model_id"]].load(self.states[body["path"]])
        return self._later({"type": "load_weights"})

    def _save_weights_for_sampler(self, body: JsonObject) -> tuple[int, JsonObject]:
        name = f"sampling-{next(self._numbers)}"
        self._samplers[name] = (self.base_VV + self.adapters[body["model_id"]].table_VV).detach()
        path = None if body.get("path") is None else f"tinker://{body['model_id']}/sampler_weights/{body['path']}"
        answer = {"path": path, "sampling_session_id": None if path else name, "type": "save_weights_for_sampler"}
        return self._later({name: value for name, value in answer.items() if value is not None})

    def _asample(self, body: JsonObject) -> tuple[int, JsonObject]:
        settings, table_VV = body["sampling_params"], self._samplers[body["sampling_session_id"]]
        generator, ids, logprobs = torch.Generator().manual_seed(settings["seed"]), [], []
        last = body["prompt"]["chunks"][0]["tokens"][-1]
        while len(ids) < settings["max_tokens"] and not (ids and ids[-1] in settings["stop"]):
            found_V = torch.log_softmax(table_VV[last], dim=-1)
            last = int(torch.multinomial(found_V.exp(), 1, generator=generator))
            ids.append(last)
            logprobs.append(float(found_V[last]))
        reason = "stop" if ids[-1] in settings["stop"] else "length"
        return self._later({"sequences": [{"stop_reason": reason, "tokens": ids, "logprobs": logprobs}]})

    def _archive(self, parts: list[str]) -> JsonObject | bytes:
        if parts[-1] == "archive":
            return {"url": f"{self.url}/api/v1/training_runs/{parts[1]}/download", "expires": "2030-01-01T00:00:00Z"}
        data, text = io.BytesIO(), json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 32.0, "target_modules": None})
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            for name, content in (("../../escaped", b""), ("adapter_config.json", text.encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return data.getvalue()

    def _later(self, result: JsonObject) -> tuple[int, JsonObject]:
        number = str(next(self._numbers))
        self._results[number] = result
        return 200, {"request_id": number, "future_id": number, "status": "pending", "model_id": "none"}


def _losses(loss: str, found_T: Tensor, arrays: dict[str, Tensor], settings: JsonObject) -> Tensor:
    if loss == "cross_entropy":
        return -found_T
    ratio_T = (found_T - arrays["logprobs"]).exp()
    if loss == "importance_sampling":
        return -ratio_T * arrays["advantages"]
    clipped_T = ratio_T.clamp(settings.get("clip_low_threshold", 0.8), settings.get("clip_high_threshold", 1.2))
    return -torch.minimum(ratio_T * arrays["advantages"], clipped_T * arrays["advantages"])


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    return [_copied(value) for value in state] if isinstance(state, list) else state


def _handler(service: StandInService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, found, heard = service.answer(self.path, data, self.headers["X-API-Key"])
            if not heard:
                self.close_connection = True
                return
            answer = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
