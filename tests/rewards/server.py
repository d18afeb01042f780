"""An OpenAI-compatible server: P(yes) is a picture's brightness. It errs when it is told to."""

import base64
import io
import json
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

LATE_S = 1.0


class Server(ThreadingHTTPServer):
    """faults: what the first chat requests meet, in turn ("" is none). asked: what was answered."""

    daemon_threads = True

    def __init__(self, faults: Sequence[str], port: int):
        super().__init__(("127.0.0.1", port), Handler)
        self.left, self.faulted, self.asked, self.keys = list(faults), 0, [], set()
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "served-model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.guard:
            fault = self.server.left.pop(0) if self.server.left else ""
            self.server.faulted += bool(fault)
        if fault.isdigit():
            return self.answer(int(fault), {"error": "told to"})
        if fault == "die":
            threading.Thread(target=self.server.shutdown, daemon=True).start()
            self.server.socket.close()
        if fault in ("die", "hang up"):
            return self.connection.close()
        if fault in ("garbage", "empty"):
            return self.answer(200, None if fault == "garbage" else {})
        if fault == "late":
            time.sleep(LATE_S)
        picture, text = body["messages"][0]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        yes = float(np.asarray(Image.open(io.BytesIO(data))).mean() / 255)
        if not fault:
            with self.server.guard:
                self.server.keys.add(self.headers.get("Authorization"))
                self.server.asked.append({"question": text["text"], "model": body["model"]})
        told = [
            {"token": t, "logprob": math.log(max(p, 1e-9))}
            for t, p in (("Yes", yes), ("No", 1 - yes))
        ]
        first = {**told[0], "top_logprobs": told}
        message = {"message": {"content": "Yes"}, "logprobs": {"content": [first]}}
        self.answer(200, {"choices": [message]})

    def answer(self, status: int, body: dict | None) -> None:
        data = b"<html>no JSON" if body is None else json.dumps(body).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # who asked has gone

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(faults: Sequence[str] = (), port: int = 0) -> Iterator[Server]:
    server = Server(faults, port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
