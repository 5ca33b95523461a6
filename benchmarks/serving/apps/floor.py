"""The least that a server in this language can do: no HTTP is read, nothing is checked or kept.

One thread waits for bytes on any connection, runs the model on the last of them and answers.
"""

import os
import select
import socket

import numpy as np
from common import MODELS, open_model, wanted

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
sessions = {name: open_model(name) for name in wanted()}


def answer(data: bytes) -> bytes:
    """Run the model that the address names."""
    name = "cnn" if b"/cnn/" in data[:60] else "table"
    about = MODELS[name]
    row = np.frombuffer(data[-4 * sizes[name] :], np.float32).reshape(about["shape"])
    out = sessions[name].run([about["output"]], {about["input"]: row})[0].tobytes()
    return HEAD % len(out) + out


sizes = {name: int(np.prod(MODELS[name]["shape"])) for name in sessions}
connections: dict[int, socket.socket] = {}
poll = select.epoll()
with socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=64) as listener:
    poll.register(listener.fileno(), select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                one, _ = listener.accept()
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[one.fileno()] = one
                poll.register(one.fileno(), select.EPOLLIN)
            elif data := connections[fd].recv(1 << 16):
                connections[fd].sendall(answer(data))
            else:
                poll.unregister(fd)
                connections.pop(fd).close()
