"""A serving process without a model: speaks the serve protocol, answers on the socket.

    python tests/fakes/serve_child.py CONFIG --listen-fd N --control-fd M

The first slot's `variant` says how it behaves: ``fine``, ``fails`` (says why), ``exits``
(before it is ready), ``hangs`` (never ready), ``deaf`` (does not drain), ``crashes`` (when
it is asked). Every connection gets one line: its bundle and its process id.
"""

import argparse
import json
import os
import select
import socket
import sys
import time
from pathlib import Path

from agent.serve_protocol import (
    Accept,
    Drain,
    Drained,
    Failed,
    Ready,
    SlotStats,
    Stats,
    frame,
    frames_from_control,
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--control-fd", type=int, required=True)
    arguments = parser.parse_args()
    slots = json.loads(arguments.config.read_bytes())["slots"]
    behaviour = slots[0]["variant"] if slots else "fine"
    control = socket.socket(fileno=arguments.control_fd)
    listener = socket.socket(fileno=arguments.listen_fd)
    if behaviour == "exits":
        sys.exit(3)
    if behaviour == "fails":
        control.sendall(frame(Failed("the model is broken")))
        sys.exit(1)
    if behaviour == "hangs":
        time.sleep(60)
    control.sendall(frame(Ready("boot", 1.0)))
    serve(control, listener, slots, behaviour)


def serve(
    control: socket.socket, listener: socket.socket, slots: list[dict[str, str]], behaviour: str
) -> None:
    frames, accepting, answered = frames_from_control(), False, 0
    listener.setblocking(False)
    line = f"{slots[0]['bundle'] if slots else '-'} {os.getpid()}\n".encode()
    while True:
        readable, _, _ = select.select([control, *([listener] if accepting else [])], [], [], 0.05)
        if control in readable:
            data = control.recv(4096)
            if not data:
                sys.exit(0)
            for message in frames.feed(data):
                if isinstance(message, Accept):
                    accepting = True
                if isinstance(message, Drain) and behaviour != "deaf":
                    control.sendall(frame(Drained()))
                    sys.exit(0)
        if listener in readable:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            if behaviour == "crashes":
                os.abort()
            answered += 1
            connection.sendall(line)
            connection.close()
        stats = {slot["slot"]: SlotStats(answered, 0, 5.0, 9.0) for slot in slots}
        control.sendall(frame(Stats(stats)))


if __name__ == "__main__":
    main()
