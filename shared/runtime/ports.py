"""Free TCP ports of the loopback interface.

Operating systems use the ports from 32768 upwards for outgoing connections and for listeners that ask for any
port. A lower port therefore stays free until its service binds it, and while the service restarts.
"""

import socket
from itertools import count
from secrets import randbelow

from shared.errors import ServiceError

_PORTS = range(10_000, 32_768)
#: Positions in `_PORTS`. The random start keeps processes that choose at the same time apart.
_positions = count(randbelow(len(_PORTS)))


def free_port() -> int:
    """A free port that was not returned before in this process.

    Raises:
        ServiceError: every port of the range is in use.
    """
    for _ in _PORTS:
        port = _PORTS[next(_positions) % len(_PORTS)]
        if is_free(port):
            return port
    raise ServiceError(
        f"no TCP port from {_PORTS[0]} to {_PORTS[-1]} is free on 127.0.0.1; stop programs that use some"
    )


def is_free(port: int) -> bool:
    """True when nothing listens on a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
