"""A process that scores: reward models in an interpreter, or on a host, of their own.

    SRRL_WORKER_TOKEN=... python -m rewards.worker --models '{"imagereward": {}}' --port 7337

The trainer starts one by itself with reward.backend "worker" or "original"; by hand one is started
for reward.worker.address. It listens on loopback unless --host says otherwise, and answers only
those that know the token. Its frames hold JSON and raw numbers (rewards/protocol.py). A worker
that was started by a trainer ends with it.
"""

import argparse
import hmac
import json
import os
import socketserver
import sys
import threading

import torch

from rewards import ORIGINALS, REGISTRY, Reward, load_rewards, protocol
from rewards.faults import named_faults
from srrl.errors import UserError, one_line_errors

TOKEN = "SRRL_WORKER_TOKEN"


class Server(socketserver.ThreadingTCPServer):
    """Connections side by side, one scoring at a time."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], rewards: dict[str, Reward], token: str):
        super().__init__(address, Handler)
        self.rewards, self.token, self.busy = rewards, token, threading.Lock()


class Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        try:
            header, _ = protocol.receive(self.request)
            if not hmac.compare_digest(str(header.get("token", "")), self.server.token):
                protocol.send(self.request, {"error": "the token is not this worker's"})
                return
            protocol.send(self.request, {"rewards": list(self.server.rewards)})
            while True:
                header, payload = protocol.receive(self.request)
                self.answer(header, payload)
        except ConnectionError:
            return

    def answer(self, header: dict, payload: bytes) -> None:
        """A frame of scores, or of an error that the trainer will show."""
        try:
            reward, prompts = self.server.rewards[header["reward"]], header["prompts"]
            if header["do"] == "check":
                if hasattr(reward, "check_prompts"):
                    reward.check_prompts(prompts)
                protocol.send(self.request, {})
                return
            images = protocol.images_from_bytes(payload, header["shape"])
            with self.server.busy, torch.no_grad(), named_faults(header["reward"], "score"):
                scores = torch.as_tensor(reward.score(images, prompts)).float()
                told = {"shape": list(scores.shape), "details": getattr(reward, "details", None)}
        except UserError as error:
            protocol.send(self.request, {"error": str(error)})
        except Exception as error:
            protocol.send(self.request, {"error": f"{type(error).__name__}: {error}"})
        else:
            protocol.send(self.request, told, protocol.scores_to_bytes(scores))


def end_with_parent() -> None:
    """End when the trainer that holds the other end of stdin is gone."""
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", required=True, help='{"name": {options}, ...}')
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one, printed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--original", action="store_true", help="the authors' own packages")
    parser.add_argument("--child", action="store_true", help="end when stdin is closed")
    args = parser.parse_args()
    token = os.environ.get(TOKEN, "")
    if not token:
        raise UserError(f"{TOKEN} is not set: choose a secret and give it to trainer and worker")
    try:
        models = json.loads(args.models)
        models.items()
    except (ValueError, AttributeError):
        raise UserError(f'--models {args.models}: expected JSON like {{"name": {{}}}}') from None
    rewards = load_rewards(
        models,
        models,
        device=args.device,
        dtype=args.dtype,
        registry=ORIGINALS if args.original else REGISTRY,
    )
    with Server((args.host, args.port), rewards, token) as server:
        print(f"listening {server.server_address[1]}", flush=True)
        if args.child:
            threading.Thread(target=end_with_parent, daemon=True).start()
        server.serve_forever()


if __name__ == "__main__":
    with one_line_errors():
        main()
