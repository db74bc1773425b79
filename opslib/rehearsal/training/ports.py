"""A port for the hosts of one job to meet at, which no other program is given meanwhile."""

import socket
import sys


class HeldPort:
    """A free port, held from its choice until `release`.

    On Linux it stays bound without listening: the system gives it to nobody who asks for any free port, and a program
    that names it and sets SO_REUSEADDR, as torch's store does, may listen on it. Elsewhere such a socket would take the
    connections for itself, so the port is only looked for.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        if sys.platform == "linux":
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("", 0))  # on every address, because torch's store listens on every address
        self.number: int = self._socket.getsockname()[1]
        if sys.platform != "linux":
            self.release()

    def release(self) -> None:
        """Let others have it; safe to repeat."""
        self._socket.close()
