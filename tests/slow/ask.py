"""`ask.py PYTHON SOCKET ASKED ARGUMENTS`: what `PYTHON ARGUMENTS` does, by tests/slow/warm.py's
process where it takes the command, which then takes ASKED for its interpreter.

Signals are passed on, and it ends as the command does. By the standard library alone, for it is
started as often as python is.
"""

import json
import os
import signal
import socket
import sys

PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(python: str, address: str, executable: str, *arguments: str) -> int:
    command = arguments[arguments[:1] == ("-u",) :]
    if not command or command[0] in ("-", "-c"):
        os.execv(python, [python, *arguments])
    given = {"arguments": command, "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as warm:
        warm.connect(address)
        text = json.dumps({**given, "executable": executable}).encode() + b"\n"
        text = text[socket.send_fds(warm, [text], [0, 1, 2]) :]
        if text:  # else it may have been answered
            warm.sendall(text)
        for number in PASSED:
            signal.signal(number, lambda n, _: warm.sendall(f"{int(n)} ".encode()))
        said = warm.recv(16).strip()
    if said == b"no":
        for number in PASSED:
            signal.signal(number, signal.SIG_DFL)
        os.execv(python, [python, *arguments])
    code = int(said or 1)
    if code < 0:
        if -code in PASSED:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
