"""A web page on this machine that draws with a checkpoint: type a prompt, see every round.

    python scripts/demo.py --checkpoint runs/tiny                     # http://127.0.0.1:7860
    python scripts/demo.py --checkpoint runs/tiny:best --port 0       # on a port that is free
    python scripts/demo.py --config config/stage_process.py:tiny      # the model without a LoRA
    python scripts/demo.py --config config/stage_process.py:sd14 --checkpoint lora.safetensors
    python scripts/demo.py --checkpoint runs/rig_tiny/editor          # RL-RIG: strips of its edits
    python scripts/demo.py --config config/rig.py:tiny

The same prompt, seed and values give the pictures of scripts/sample.py, or scripts/rig.py draw. One
is drawn at a time, others wait in line. The page needs no network, and only this machine reaches
it, unless --host says otherwise. Needs `pip install -e '.[demo]'`. Ends with Ctrl-C.
"""

import argparse
import importlib.util
import ipaddress
import os
import socket
import sys
import threading
from pathlib import Path

from srrl.config import REPOSITORY, load_config, parse
from srrl.errors import UserError, one_line_errors
from srrl.life import end_on_signals
from srrl.methods import METHODS

PACKAGES = ("starlette", "uvicorn")
LOOPBACK = "127.0.0.1"


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and --config.KEY=VALUE for the preset."""
    parser = argparse.ArgumentParser(
        prog="demo.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, help="a run, RUN:best, RUN:16, or a LoRA's file or folder")
    add(
        "--config",
        help="FILE.py:PRESET, for the model without a LoRA, or of a LoRA by itself; "
        "--config.KEY=VALUE changes it (a run has its own config)",
    )
    add("--max-rounds", type=int, default=10, help="most that may be asked for (%(default)s)")
    add("--no-score", action="store_true", help="do not load the rewards")
    add("--host", default=LOOPBACK, help="where to listen: 0.0.0.0 lets others in (%(default)s)")
    add("--port", type=int, default=7860, help="0 takes a free one (%(default)s)")
    args, overrides = parse(parser, argv)
    if not (args.checkpoint or args.config):
        raise UserError("give --checkpoint, or --config (the model without a LoRA)")
    if args.max_rounds < 1:
        raise UserError(f"--max-rounds {args.max_rounds}: at least 1")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port} is out of range: 0 to 65535")
    return args, overrides


def check_packages() -> None:
    """Raise UserError where the packages of the extra `demo` are not there."""
    missing = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(
            f"the demo needs {' and '.join(missing)}: run "
            f"`{sys.executable} -m pip install -e '{REPOSITORY}[demo]'`"
        )


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0])
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        named = getattr(error, "strerror", None) or str(error)
        reason = (os.strerror(number) if number > 0 else named).lower()  # without Python's addition
        raise UserError(
            f"--host {host} --port {port}: cannot listen there ({reason}): choose another port, or "
            f"0 for a free one"
        ) from None


def main(argv: list[str]) -> None:
    args, overrides = arguments(argv)
    if args.config:
        # Refused before anything heavy is imported.
        load_config([f"--config={args.config}", *overrides], methods=[*METHODS])
    check_packages()
    listener = listening(args.host, args.port)
    at, port = listener.getsockname()[:2]
    alone = ipaddress.ip_address(at).is_loopback
    if not alone:
        print(f"warning: anyone who reaches port {port} of this machine can draw", file=sys.stderr)

    import uvicorn

    from srrl.demo.chosen import painter_of
    from srrl.demo.desk import Desk
    from srrl.demo.page import application

    scored = not args.no_score
    painter = painter_of(args.checkpoint, args.config, overrides, args.max_rounds, scored)
    desk = Desk(painter)
    shown = f"[{at}]" if ":" in at else at
    hosts = [LOOPBACK, "localhost", args.host, shown] if alone else ["*"]
    settings = uvicorn.Config(
        application(desk, hosts), log_level="error", lifespan="off", server_header=False
    )
    server = threading.Thread(
        target=uvicorn.Server(settings).run, args=([listener],), daemon=True, name="server"
    )
    server.start()
    print(f"{painter.name}: http://{shown}:{port} (Ctrl-C ends it)", flush=True)
    desk.serve()  # in the main thread, where signals end it


if __name__ == "__main__":
    with one_line_errors():
        end_on_signals()
        main(sys.argv[1:])
