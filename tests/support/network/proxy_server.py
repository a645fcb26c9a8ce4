"""A proxy on loopback that opens tunnels for CONNECT, as a hospital's does, and notes for which hosts."""

import contextlib
import socket
import threading


class ProxyServer:
    """From ``with`` to its end at ``url``; every tunnel leads to ``port`` of loopback, whatever host is asked for.

    ``status`` is what it answers in place of opening one; ``hosts`` are those that were asked for (host:port), and
    ``credentials`` what was shown it.
    """

    def __init__(self, port, *, status=200):
        self.port = port
        self.hosts = []
        self.credentials = set()
        self._status = status
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open = [self._listening]
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *exception):
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self):
        with contextlib.suppress(OSError):  # at the end
            while True:
                peer, _ = self._listening.accept()
                self._open.append(peer)
                threading.Thread(target=self._tunnel, args=(peer,), daemon=True).start()

    def _tunnel(self, peer):
        with contextlib.suppress(OSError), peer:
            head = b""
            while b"\r\n\r\n" not in head:
                head += peer.recv(4096) or b"\r\n\r\n"
            first, *headers = head.decode().splitlines()
            self.hosts.append(first.split()[1])
            self.credentials |= {line for line in headers if line.lower().startswith("proxy-authorization:")}
            peer.sendall(f"HTTP/1.1 {self._status} Said\r\n\r\n".encode())
            if self._status != 200:
                return
            with socket.create_connection(("127.0.0.1", self.port)) as server:
                self._open.append(server)
                back = threading.Thread(target=carry, args=(server, peer), daemon=True)
                back.start()
                carry(peer, server)
                back.join()


def carry(source, target):
    """Bytes one way, until their end."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
