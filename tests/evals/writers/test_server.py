"""A server as a side: what is sent, what is seen, counted and recognised from outside."""

from __future__ import annotations

import http.server
import json
import threading
import time

import pytest
from lm_eval.api.instance import Instance

from dgemma_core import DgemmaError, RequestError
from dgemma_evals.comparison.compare import compare
from dgemma_evals.comparison.plan import Plan
from dgemma_evals.comparison.summary import summarise
from dgemma_evals.writers.base import Traffic
from dgemma_evals.writers.named import writer

TASK = "dgemma_nano_letter_counting"
PROBE = 24
"""Tokens that a writer asks for to know the model again."""


class Server(http.server.BaseHTTPRequestHandler):
    """Speaks the part of the protocol that is used, in pieces."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._send(json.dumps({"data": [{"id": "m", "created": time.time()}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            if not self.server.tokenizes:
                return self.send_error(404)
            return self._send(json.dumps({"count": len(body["prompt"])}).encode())
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        if self.server.busy:
            self.server.busy -= 1
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        with self.server.lock:
            self.server.at_work += 1
            self.server.most = max(self.server.most, self.server.at_work)
        time.sleep(self.server.seconds)
        with self.server.lock:
            self.server.at_work -= 1
        broken = {
            14: (b'data: {"error": {"message": "out of memory"}}\n\n', 0),
            15: (b"<html>", 0),
            16: (b": alive\n\ndata: {", 9),
        }
        limit = body["max_tokens"]
        if limit == 13:
            return self.send_error(400, "too many")
        if limit in broken:
            return self._send(*broken[limit])
        usage = {"completion_tokens": 9, "prompt_tokens": 7}
        if self.path.endswith("/v1/completions"):
            part = {"choices": [{"text": "42", "finish_reason": "stop"}], "usage": usage}
            return self._send(f"data: {json.dumps(part)}\n\n".encode())
        met = {"stop_reason": body["stop"][0]} if body["stop"] else {}
        events = [
            {"choices": [{"delta": {"content": self.server.says}}]},
            {"choices": [{"delta": {"content": "2"}, "finish_reason": "stop", **met}]},
            {"choices": [], "usage": usage},
        ]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        self._send("".join(lines).encode())

    def _send(self, content, missing=0):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + missing))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    served.asked, served.keys, served.says, served.tokenizes = [], [], "4", True
    served.busy = served.at_work = served.most = 0
    served.seconds, served.lock = 0.0, threading.Lock()
    served.url = f"http://127.0.0.1:{served.server_port}/v1"
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield served
    served.shutdown()
    served.server_close()


def asking(prompt="one", **gen_kwargs):
    return Instance("generate_until", {}, (prompt, {"until": [], **gen_kwargs}), 0, ("t", 0, 1))


@pytest.mark.slow
def test_both_sides_may_be_servers(server, tmp_path):
    sides = [writer(server.url, extra={"steps": 8}), writer(f"{server.url}#m,temperature=0.5")]
    assert [side.deterministic for side in sides] == [True, False]
    plan = Plan(tasks=(TASK,), limit=2, seeds=1, batches=(2,))
    found = summarise(compare(plan, sides, tmp_path, quiet=True))
    first, second = found["sides"].values()
    assert list(found["sides"]) == [f"{server.url},steps=8", f"{server.url}#m,temperature=0.5"]
    assert first["kept_tokens"] == 2 * 3, "the text's two, and the end"
    assert first["stop_reasons"] == {"stop": 2} and first["first_seconds"] > 0
    assert "tokens_per_forward" not in first and second["texts"] == 2
    assert sum("client cannot see" in line for line in found["not_measured"]) == 2
    told = [body for body in server.asked if body["max_tokens"] == 128]
    assert {(b.get("steps"), b["temperature"]) for b in told} == {(8, 0.0), (None, 0.5)}
    assert all(b["seed"] == 0 and b["stream"] and len(b["stop"]) <= 4 for b in told)


def test_a_chat_arrives_as_its_messages(server):
    client = writer(server.url)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "é?"}]
    client.write(asking(client.template(chat)), 0, {})
    assert server.asked[-1]["messages"] == chat
    client.write(asking('["no chat"]'), 0, {})
    assert server.asked[-1]["messages"] == [{"role": "user", "content": '["no chat"]'}]
    with pytest.raises(RequestError, match="begun"):
        client.template(chat, add_generation_prompt=False)


def test_tokens_are_those_of_the_text_and_the_end(server):
    """What a server bills may hold a stop string, which is not kept."""
    client = writer(server.url)
    assert client.write(asking(), 0, {}).counts.kept_tokens == 3
    assert client.write(asking(until=["\n"]), 0, {}).counts.kept_tokens == 2, "no end was written"
    assert "/tokenize" in client.describe()["tokens"]
    server.tokenizes = False
    billed = writer(server.url)
    assert billed.write(asking(until=["\n"]), 0, {}).counts.kept_tokens == 9
    assert "stop strings may be among them" in billed.describe()["tokens"]


def test_the_first_piece_counts_as_many_tokens_as_it_holds(server):
    """A diffusion server sends a canvas at once."""
    server.says = "a whole canvas"
    ((tokens, seconds),) = writer(server.url).write(asking(), 0, {}).counts.milestones
    assert tokens == len("a whole canvas") and seconds > 0


def test_another_model_behind_the_same_address_is_noticed(server):
    before = writer(server.url).identity
    assert writer(server.url).identity == before, (
        "not the time at which the server says it was asked"
    )
    server.says = "5"
    assert writer(server.url).identity != before
    assert server.asked[-1]["max_tokens"] == PROBE


@pytest.mark.slow
def test_several_requests_at_a_time(server):
    client = writer(server.url)
    server.seconds = 0.1
    served = client.serve([asking(str(i)) for i in range(6)], 0, Traffic(3))
    assert server.most == 3 and len(served) == 6 and all(one.waited == 0 for one in served)
    server.most = 0
    arrivals = (0.0, 0.01, 0.02, 0.5)
    start = time.perf_counter()
    client.serve([asking(str(i)) for i in range(4)], 0, Traffic(1, arrivals))
    assert time.perf_counter() - start >= 0.5 and server.most == 3, "an open loop waits for nobody"


def test_a_busy_server_is_asked_again(server):
    client = writer(server.url)
    server.busy = 2
    assert client.write(asking(), 0, {}).text == "42"
    server.busy = 99
    with pytest.raises(DgemmaError, match="the server answers 503"):
        client.write(asking(), 0, {})


@pytest.mark.slow
def test_what_goes_wrong_is_one_clear_line(server, monkeypatch):
    with pytest.raises(RequestError, match="the server has m"):
        writer(f"{server.url}#other")
    client = writer(server.url)
    server.tokenizes = False
    bare = writer(server.url)
    for limit, says in ((13, "answers 400"), (14, "says.*out of memory"), (15, "no tokens"),
                        (16, "no OpenAI-compatible server|broke off")):  # fmt: skip
        with pytest.raises(DgemmaError, match=says) as caught:
            bare.write(asking(max_gen_toks=limit), 0, {})
        assert "\n" not in str(caught.value)
    assert set(server.keys) == {None}
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    client.write(asking(), 0, {})
    assert server.keys[-1] == "Bearer k"
    for address in ("http://127.0.0.1:9/v1", "http://"):
        with pytest.raises(DgemmaError, match="no server there"):
            writer(address)


def test_prompts_as_they_are(server):
    plain = writer(server.url, chat=False)
    assert plain.write(asking("raw"), 0, {}).text == "42"
    assert plain.identity != writer(server.url).identity and plain.template is None
    (asked,) = [body for body in server.asked if body.get("prompt") == "raw"]
    assert "messages" not in asked
    assert plain.describe()["prompts"] == "as they are"
