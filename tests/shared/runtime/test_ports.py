"""A free port has no listener, is returned once, and is outside the ephemeral range."""

import socket
from pathlib import Path

import pytest

from shared.errors import ServiceError
from shared.runtime import ports

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_returned_once() -> None:
    returned = [ports.free_port() for _ in range(200)]
    assert len(set(returned)) == 200


@pytest.mark.skipif(not EPHEMERAL.is_file(), reason="only Linux publishes its range of ephemeral ports")
def test_free_ports_are_outside_the_ephemeral_range() -> None:
    first, last = map(int, EPHEMERAL.read_text().split())
    assert not {ports.free_port() for _ in range(200)} & set(range(first, last + 1))


def test_a_port_with_a_listener_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ports.free_port()
    monkeypatch.setattr(ports, "_PORTS", range(taken, taken + 1))
    assert ports.free_port() == taken
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        assert not ports.is_free(taken)
        with pytest.raises(ServiceError, match=f"no TCP port from {taken} to {taken} is free"):
            ports.free_port()
    assert ports.is_free(taken)
