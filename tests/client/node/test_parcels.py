"""Large messages between server and node: in pieces, past every kill, and never anything but what was sent."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.client.node.parcels import Parcels
from grandrounds.common.crypto.identity import sha256
from grandrounds.common.errors import EnvelopeError
from grandrounds.common.protocol.messages import FIELD
from grandrounds.common.protocol.pieces import Piece, Wanted, Whole
from grandrounds.server.rounds.pieces import InPieces

PIECE, LARGEST = 7, 100


class Site:
    """A node in ``folder`` whose worker answers with ``answer``; ``requests`` are those that it got."""

    def __init__(self, folder: Path, answer: bytes = b"yes"):
        self.folder, self.answer = folder, answer
        self.requests: list[bytes] = []
        self.told: list[dict] = []

    @property
    def parcels(self):
        """Of a process of its own, as each task of a node is."""
        return Parcels(folder=self.folder / "pieces", largest_bytes=LARGEST, ask=self._ask, piece_bytes=PIECE)

    def _ask(self, request, answer):
        self.requests.append(request.read())
        answer.write(self.answer)

    def reply(self, record):
        self.told.append(dict(record))
        return self.parcels.answered(record)

    def kept(self):
        return {path.name: path.read_bytes() for path in (self.folder / "pieces").glob("*")}


def carried(folder):
    return InPieces(folder=folder, largest_bytes=LARGEST, piece_bytes=PIECE)


def exchange(site, message, *, until=None, reply=None):
    """The site's answer to ``message``; None where the server is killed after ``until`` replies."""
    under_way = carried(site.folder)(message)
    record = next(under_way)
    while until is None or len(site.told) < until:
        try:
            record = under_way.send((reply or site.reply)(record))
        except StopIteration as end:
            return bytes(end.value[:])
    return None


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


@settings(max_examples=60, deadline=None)
@given(request=st.binary(max_size=60), answer=st.binary(max_size=60))
def test_a_message_and_its_answer_arrive_as_they_were_and_nothing_carries_more_than_a_piece(request, answer):
    with TemporaryDirectory() as folder:
        site = Site(Path(folder), answer)
        assert exchange(site, request) == answer
        assert site.requests == [request]
        assert all(len(record.get("piece", record.get(FIELD, b""))) <= PIECE for record in site.told)


@pytest.mark.parametrize("replies", range(1, 9))
def test_after_a_kill_of_server_and_node_a_message_goes_on_where_it_was(site, replies):
    message = bytes(range(50))
    exchange(site, message, until=replies)
    assert exchange(site, message) == b"yes"
    then = [record["start"] for record in site.told[replies:] if "piece" in record]
    assert then == [0, *range(PIECE * replies, 50, PIECE)], "the first, by which the server learns how much is there"
    assert site.requests == [message]


def test_a_piece_that_comes_twice_changes_nothing(site):
    message = b"0123456789"
    first = Piece(whole=sha256(message), size=10, start=0, piece=message[:7]).model_dump()
    assert [site.reply(first), site.reply(first)] == [{"held": 7}, {"held": 7}]
    assert exchange(site, message) == b"yes"
    assert site.requests == [message]


def test_a_worker_gets_no_message_of_which_a_byte_is_another(site):
    message = bytes(range(20))
    exchange(site, message, until=3)
    (path,) = (site.folder / "pieces").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert exchange(site, message) == b"yes"
    assert site.requests == [message]


def test_a_worker_gets_no_message_that_is_not_whole(site):
    message = bytes(range(20))
    exchange(site, message, until=1)
    assert site.reply(Whole(whole=sha256(message)).model_dump()) == {"held": 0}
    assert (site.folder / "pieces").stat().st_mode & 0o777 == 0o700, "pieces are the node's user's alone"
    assert site.reply(Whole(whole=sha256(b"never came")).model_dump()) == {"held": 0}
    assert site.requests == []


def test_the_server_fills_no_disk(site):
    with pytest.raises(EnvelopeError, match="an envelope of 101 bytes"):
        exchange(site, bytes(LARGEST + 1))
    with pytest.raises(EnvelopeError, match="beyond its end"):
        site.reply(Piece(whole="0" * 64, size=3, start=0, piece=b"more").model_dump())
    assert not (site.folder / "pieces").exists()
    for message in (bytes(20), bytes(30), bytes(40)):
        exchange(site, message, until=len(site.told) + 2)
        assert list(site.kept()) == [f"request-{sha256(message)}"]


def test_of_answers_the_last_is_kept_until_the_next(site):
    for answer in (bytes(20), bytes(30), b"short"):
        site.answer = answer
        assert exchange(site, b"ask") == answer
        kept = {f"answer-{sha256(answer)}": answer} if len(answer) > PIECE else {}
        assert site.kept() == kept


LIES = {
    "no piece": lambda piece: {FIELD: "text"},
    "another answer's": lambda piece: piece | {"whole": sha256(b"another")},
    "another place's": lambda piece: piece | {"start": piece["start"] + 1},
    "an empty one": lambda piece: piece | {"piece": b""},
    "one with more than there is": lambda piece: piece | {"piece": bytes(LARGEST)},
    "other bytes": lambda piece: piece | {"piece": b"x" * len(piece["piece"])},
    "a larger answer": lambda piece: piece | {"size": piece["size"] + 1},
    "an answer of any size": lambda piece: piece | {"size": LARGEST + 1},
    "another type": lambda piece: piece | {"size": "20"},
    "one field more": lambda piece: piece | {"note": "?"},
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("place", [0, 7])
def test_a_site_that_lies_about_its_answer_has_given_none(site, lie, place):
    site.answer = bytes(range(20))

    def lying(record):
        try:
            reply = site.reply(record)
        except FileNotFoundError:
            return {FIELD: b""}  # as the relay says then
        return LIES[lie](reply) if reply.get("start") == place else reply

    with pytest.raises(EnvelopeError):
        exchange(site, b"ask", reply=lying)


def test_a_site_that_says_of_a_message_what_cannot_be_loses_it_alone(site):
    for held in ({"held": -1}, {"held": 2**41}, {}, {FIELD: b""}):
        with pytest.raises(EnvelopeError):
            exchange(site, bytes(20), reply=lambda record, held=held: held)
    for record in ({}, {"held": 3}, {"whole": "../../key"}, {"answer": "0" * 64, "start": 0}):
        with pytest.raises((EnvelopeError, OSError)):
            site.reply(record)


def test_no_message_of_the_server_names_a_file_that_is_not_a_parcel(site):
    (site.folder / "secret").write_bytes(b"secret")
    for name in ("../secret", "/etc/passwd", "0" * 63 + "/"):
        with pytest.raises(EnvelopeError):
            site.reply({"answer": name, "start": 0})
    with pytest.raises(FileNotFoundError):
        site.reply(Wanted(answer="0" * 64, start=0).model_dump())
