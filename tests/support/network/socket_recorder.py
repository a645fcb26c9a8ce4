"""Between a relay and a worker: every byte that passes is kept, and may be altered on its way."""

import contextlib
import socket
import threading

from grandrounds.client.worker_socket import HEAD
from support.network.loopback import until


class SocketRecorder:
    """Listens at ``path`` and passes each conversation on to ``target``, from ``with`` to its end.

    ``conversations`` are pairs of what was asked and what was answered, whole, with their heads. ``alter_request`` and
    ``alter_answer`` change them on the way.
    """

    def __init__(self, path, target):
        self.path, self.target = path, target
        self.conversations = []
        self.alter_request = self.alter_answer = bytes
        self._listening = socket.socket(socket.AF_UNIX)

    def __enter__(self):
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        self.path.unlink()

    def _serve(self):
        with contextlib.suppress(OSError):  # at the end
            while True:
                relay, _ = self._listening.accept()
                with relay, contextlib.suppress(OSError):
                    self._pass_on(relay)

    def _pass_on(self, relay):
        request = self.alter_request(whole(relay))
        with until(self._connected, "a worker is up") as worker:
            worker.sendall(request)
            answer = self.alter_answer(whole(worker))
        self.conversations.append((request, answer))
        relay.sendall(answer)

    def _connected(self):
        """A connection to the worker, once it is up: a relay would wait for it, too."""
        worker = socket.socket(socket.AF_UNIX)
        try:
            worker.connect(str(self.target))
        except (FileNotFoundError, ConnectionRefusedError):
            worker.close()
            return None
        return worker


def whole(peer):
    """A request or an answer with its head, as ``link`` frames them."""
    data = b""
    while len(data) < HEAD.size or len(data) < HEAD.size + HEAD.unpack_from(data)[1]:
        piece = peer.recv(1 << 16)
        if not piece:
            break
        data += piece
    return data


def flipped(data, at):
    """The same bytes but for one bit of the byte ``at``."""
    return bytes(byte ^ (1 if index == at % len(data) else 0) for index, byte in enumerate(data))
