"""A server that begins wandb's runs and then dies: `python server.py` prints its port."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SAYS = {
    "viewer": {"viewer": {"id": "u", "entity": "me", "flags": "{}", "username": "me"}},
    "upsertBucket": {
        "upsertBucket": {
            "bucket": {
                "id": "b",
                "name": "run",
                "displayName": "run",
                "config": "{}",
                "project": {"id": "p", "name": "srrl", "entity": {"id": "e", "name": "me"}},
                "historyLineCount": 0,
            },
            "inserted": True,
        }
    },
}


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(body)["query"] if self.path == "/graphql" else ""
        data = next((says for name, says in SAYS.items() if name in asked), {})
        text = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        if data is SAYS["upsertBucket"]:
            threading.Thread(target=self.die).start()

    def die(self) -> None:
        time.sleep(0.5)
        self.server.shutdown()

    do_GET = do_HEAD = do_POST = answer

    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
