"""A process that scores: reward models in an interpreter, or on a host, of their own.

    SRRL_WORKER_TOKEN=... python -m rewards.worker --models '{"imagereward": {}}'
    SRRL_WORKER_TOKEN=... python -m rewards.worker --models '{"vqascore": {}}' --host 0.0.0.0

With reward.backend "worker" or "original" the trainer starts one by itself, which nobody else can
reach. By hand one is started for reward.worker.address, which it prints: a socket in a folder that
only you can enter, or with --host a port. It answers those that prove to know the token, at most 16
at once; its messages hold JSON and raw numbers (rewards/protocol.py).
"""

import argparse
import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import AuthenticationError
from pathlib import Path

from rewards import ORIGINALS, REGISTRY, Reward, details_of, load_rewards, protocol, score_all
from rewards.protocol import Line
from srrl.errors import UserError, one_line_errors
from srrl.life import end_on_signals

TOKEN = "SRRL_WORKER_TOKEN"
CONNECTIONS = 16
# Seconds that a stranger has to prove the token, and that a message may take to come or go.
GREETING_S, MESSAGE_S = 5, 60
# A signal that comes just before a wait does not end it: none is longer than this.
WAKE_S = 1


class Server:
    """Connections side by side, one scoring at a time."""

    def __init__(self, rewards: dict[str, Reward]):
        self.rewards, self.busy = rewards, threading.Lock()

    def talk(self, line: Line) -> None:
        """Answer a trainer's requests until it ends, or says what is none."""
        with contextlib.suppress(OSError):
            counts = {name: getattr(r, "counts", None) for name, r in self.rewards.items()}
            with line.within(MESSAGE_S):
                line.send({"rewards": list(self.rewards), "counts": counts})
            while True:
                line.wait()
                with line.within(MESSAGE_S):
                    header, payload = line.receive(protocol.images_size)
                answer, data = self.answer(header, payload)
                with line.within(MESSAGE_S):
                    line.send(answer, data)

    def answer(self, header: dict, payload: bytes) -> tuple[dict, bytes]:
        """A message of scores, or of an error that the trainer will show."""
        try:
            name, prompts = header["reward"], header["prompts"]
            reward = self.rewards[name]
            if header["do"] == "check":
                if hasattr(reward, "check_prompts"):
                    reward.check_prompts(prompts)
                return {}, b""
            images = protocol.images_from_bytes(payload, header["shape"])
            with self.busy:
                scores = score_all({name: reward}, images, prompts)[name]
                details = details_of({name: reward}, len(prompts)).get(name)
            answer = {"details": details, "counts": getattr(reward, "counts", None)}
            if len(json.dumps(answer)) > protocol.HEADER // 2:
                raise UserError(f"reward {name!r} has details of more than half a megabyte")
            return answer, protocol.scores_to_bytes(scores)
        except UserError as error:
            return {"error": str(error)[:2000]}, b""
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:2000]}, b""


class Gate:
    """Lets those through to a server who prove to know the token. Where there are too many, one who
    has hung up has to go, or the one who has been there longest without proving it."""

    def __init__(self, server: Server, token: str):
        self.server, self.token, self.lock = server, token, threading.Lock()
        self.lines: list[Line] = []
        self.known: set[Line] = set()

    def serve(self, listener: socket.socket) -> None:
        listener.settimeout(WAKE_S)
        while True:
            try:
                opened, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:  # too many files of other users
                time.sleep(0.1)
                continue
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            line = Line(opened)
            if self.admitted(line):
                threading.Thread(target=self.greet, args=[line], daemon=True).start()
            else:
                line.close()

    def admitted(self, line: Line) -> bool:
        with self.lock:
            if len(self.lines) >= CONNECTIONS:
                idle = [other for other in self.lines if other.hung_up()]
                idle += [other for other in self.lines if other not in self.known]
                if not idle:
                    return False
                idle[0].cut()
                self.lines.remove(idle[0])
            self.lines.append(line)
            return True

    def greet(self, line: Line) -> None:
        try:
            with contextlib.suppress(OSError, AuthenticationError, ValueError):
                with line.within(GREETING_S):
                    line.prove(self.token, asks=True)
                with self.lock:
                    self.known.add(line)
                self.server.talk(line)
        finally:
            with self.lock:
                self.known.discard(line)
                if line in self.lines:
                    self.lines.remove(line)
            line.close()


def end_with_parent() -> None:
    """End when the trainer that holds the other end of stdin is gone."""
    while os.read(0, 4096):
        pass
    os._exit(0)


@contextlib.contextmanager
def listening(host: str | None, port: int) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens, and its address: HOST:PORT, or a path in a folder of our own."""
    if host is None:
        with tempfile.TemporaryDirectory(prefix="srrl_worker_") as folder:
            path = str(Path(folder) / "socket")
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(path)
                listener.listen(CONNECTIONS)
                yield listener, path
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listener:
        yield listener, f"{host}:{listener.getsockname()[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", required=True, help='{"name": {options}, ...}')
    parser.add_argument("--host", help="listen on this address: any of its machine's, or 0.0.0.0")
    parser.add_argument("--port", type=int, default=0, help="of --host; 0: any free one")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--original", action="store_true", help="the authors' own packages")
    parser.add_argument("--line", type=int, help="the trainer's: its socket, already open")
    args = parser.parse_args()
    token = os.environ.get(TOKEN, "")
    if args.line is None and not token:
        raise UserError(f"{TOKEN} is not set: choose a secret and give it to trainer and worker")
    if args.port and not args.host:
        raise UserError(f"--port {args.port}: needs a --host, such as 127.0.0.1")
    try:
        models = json.loads(args.models)
        models.items()
    except (ValueError, AttributeError):
        raise UserError(f'--models {args.models}: expected JSON like {{"name": {{}}}}') from None
    if args.line is not None:
        threading.Thread(target=end_with_parent, daemon=True).start()
    rewards = load_rewards(
        models,
        models,
        device=args.device,
        dtype=args.dtype,
        registry=ORIGINALS if args.original else REGISTRY,
    )
    server = Server(rewards)
    if args.line is not None:
        return server.talk(Line(socket.socket(fileno=args.line)))
    end_on_signals()
    try:
        with listening(args.host, args.port) as (listener, address):
            print(f"listening {address}", flush=True)
            Gate(server, token).serve(listener)
    except OSError as error:
        named = f"--host {args.host} --port {args.port}" if args.host else "a socket"
        raise UserError(f"{named}: cannot listen there ({error})") from error


if __name__ == "__main__":
    with one_line_errors():
        main()
