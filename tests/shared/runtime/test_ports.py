"""Ports that a service can still bind a while after they were chosen."""

import socket
from pathlib import Path

import pytest

from shared.errors import ServiceError
from shared.runtime import ports

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_given_once() -> None:
    given = [ports.free_port() for _ in range(200)]
    assert len(set(given)) == 200


@pytest.mark.skipif(not EPHEMERAL.is_file(), reason="only Linux says which ports it gives to any socket")
def test_no_socket_that_asks_for_any_port_can_take_a_free_port() -> None:
    first, last = map(int, EPHEMERAL.read_text().split())
    assert not {ports.free_port() for _ in range(200)} & set(range(first, last + 1))


def test_a_port_with_a_listener_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
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
