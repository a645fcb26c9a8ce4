"""A port that is taken is named with who has it, who wants it, and what setting says so."""

import os
import socket

import pytest

from grandrounds.common.errors import StudyError
from grandrounds.common.system.ports import await_free, holder


@pytest.fixture
def taken():
    """A port of loopback on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_who_listens_at_a_port_is_told_and_who_does_not_is_not(taken):
    assert f"process {os.getpid()} (" in holder(taken)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert holder(bound.getsockname()[1]) == "no process listens there"


def test_a_port_that_stays_taken_is_waited_for_aloud_and_then_named_with_its_program_and_setting(taken):
    said: list[str] = []
    with pytest.raises(StudyError) as refused:
        await_free(
            ("127.0.0.1", taken), program="the gate", setting="port in server.toml", patience_s=0.0, say=said.append
        )
    message = refused.value.diagnostics()
    assert f"port {taken} of 127.0.0.1, where the gate is to listen, cannot be had: Address already in use" in message
    assert f"process {os.getpid()} (" in message and "port in server.toml" in message
    await_free(("127.0.0.1", 0), program="any", setting="any", patience_s=0.0, say=said.append)
    assert len(said) <= 1 and all(f"port {taken}" in line for line in said)
