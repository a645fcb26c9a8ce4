"""Which key a call's headers prove, and when."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grandrounds.deploy.enrolment.node_keys import make_node_key, node_proof, proven_key, public_pem

NOW = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = ("flwr-public-key", "flwr-signature", "flwr-timestamp")


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    make_node_key(folder / "node.key", folder / "node.pub")
    return folder


@pytest.mark.parametrize(("late_s", "holds"), [(-5.1, False), (-4.9, True), (0, True), (304, True), (306, False)])
def test_a_proof_holds_as_long_as_flower_bears_it(node, late_s, holds):
    public, headers = node_proof(node / "node.key", now=NOW)
    found = proven_key(headers, now=NOW + timedelta(seconds=late_s))
    assert found == (public if holds else None)
    assert public == public_pem((node / "node.pub").read_text())


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=60) | st.binary(max_size=40).map(bytes.hex)))
def test_whatever_headers_say_they_prove_no_key_without_its_signature(node, said):
    _, headers = node_proof(node / "node.key", now=NOW)
    found = proven_key(headers | said, now=NOW)
    assert found is None or all(headers[name] == value for name, value in said.items())
