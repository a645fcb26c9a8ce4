"""The ledger: a chain that only grows; whatever is cut, moved or changed in it shows."""

import json
import tracemalloc
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.common.crypto.identity import Identity, canonical_json
from grandrounds.common.errors import LedgerError
from grandrounds.common.ledger.chain import (
    EMPTY_LEDGER_HEAD,
    LEDGER_LABEL,
    MAX_DEPTH,
    MAX_ENTRY_BYTES,
    Entry,
    EntryType,
    Ledger,
)

SERVER = Identity.generate()
BODY = {"attempt": 1, "files": {"a": "é"}, "rate": 0.5, "sites": ["x", "y"]}


def chain(length, *, bodies=BODY, server=SERVER):
    """Entries that follow one another."""
    entries, head = [], EMPTY_LEDGER_HEAD
    for sequence in range(length):
        entry = Entry.seal(server, entry_type=EntryType.STUDY, body=bodies, sequence=sequence, previous=head)
        entries.append(entry)
        head = entry.hash
    return entries


def ledger(entries):
    made = Ledger()
    made.add(made.continuation([entry.line for entry in entries]))
    return made


ENTRIES = chain(4)
LINES = [entry.line for entry in ENTRIES]
OTHER = [entry.line for entry in chain(5, bodies={"attempt": 2})]


def test_an_entry_is_read_as_it_was_written():
    for entry in ENTRIES:
        assert Entry.parse(entry.line) == entry
        assert entry.body == BODY


def test_a_ledger_is_its_entries_in_order_and_its_head_is_the_last_ones_hash():
    made = ledger(ENTRIES)
    assert list(made) == ENTRIES
    assert (len(made), made.last, made.head) == (4, ENTRIES[-1], ENTRIES[-1].hash)
    assert made.lines(2) == LINES[2:]
    assert (len(Ledger()), Ledger().last, Ledger().head) == (0, None, EMPTY_LEDGER_HEAD)


def test_every_bit_of_an_entry_is_signed():
    line = LINES[1]
    for at in range(len(line)):
        damaged = bytearray(line)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(LedgerError):
            Entry.parse(bytes(damaged))


def resealed(**changes):
    """An entry whose signature is right for whatever it says."""
    fields = {"author": SERVER.public_key, "body": {}, "previous": "00" * 32, "sequence": 0, "type": "study"} | changes
    signature = SERVER.sign(LEDGER_LABEL, canonical_json(fields)).hex()
    return canonical_json({**fields, "signature": signature})


def test_an_entry_that_is_signed_and_in_form_is_taken():
    assert Entry.parse(resealed()).type == EntryType.STUDY


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 1},
        {"type": "another"},
        {"sequence": -1},
        {"sequence": 2**40 + 1},
        {"sequence": True},
        {"sequence": "0"},
        {"sequence": 0.5},
        {"previous": "AB" * 32},
        {"previous": "00" * 31},
        {"body": []},
        {"body": None},
        {"author": "00" * 32},
        {"author": Identity.from_bytes(b"another key of thirty-two bytes!").public_key},
    ],
    ids=str,
)
def test_an_entry_of_another_form_or_author_is_refused_however_well_it_is_signed(changes):
    with pytest.raises(LedgerError):
        Entry.parse(resealed(**changes))


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda line: line + b"\n",
        lambda line: b" " + line,
        lambda line: line.replace(b'":', b'": ', 1),
        lambda line: line.replace(b'"attempt":1', b'"attempt":1.0'),
        lambda line: line.replace(b'"rate":0.5', b'"rate":5e-1'),
        lambda line: line.replace("é".encode(), b"\\u00e9"),
        lambda line: json.dumps(dict(reversed(json.loads(line).items())), separators=(",", ":")).encode(),
        lambda line: line.replace(b'{"attempt":1', b'{"attempt":2,"attempt":1'),
        lambda line: b"\xef\xbb\xbf" + line,
    ],
)
def test_an_entry_has_one_encoding(rewrite):
    assert rewrite(LINES[0]) != LINES[0]
    with pytest.raises(LedgerError):
        Entry.parse(rewrite(LINES[0]))


@pytest.mark.parametrize(
    "line", [b"", b"null", b"[]", b"{}", b"[" * 100_000, b'{"body":' * 50_000, b"\xff", b"NaN", b"9" * 9999], ids=len
)
def test_what_is_no_entry_is_refused(line):
    with pytest.raises(LedgerError):
        Entry.parse(line)


@pytest.mark.parametrize("value", ["1e999", "NaN", "-Infinity", str(2**53), str(2**64), '"\\ud800"'])
def test_a_body_with_what_has_no_canonical_form_is_refused(value):
    with pytest.raises(LedgerError):
        Entry.parse(LINES[0].replace(b'"attempt":1', b'"attempt":' + value.encode()))


def test_a_line_that_is_too_long_is_refused_unread():
    with pytest.raises(LedgerError, match="too long"):
        Entry.parse(b" " * (MAX_ENTRY_BYTES + 1))


def signed_as_it_is(body, *, server=SERVER):
    """A line with this text for a body, whatever it is, signed by the key that it names."""
    head = b'{"author":"%s","body":%s,"previous":"%s","sequence":0,' % (
        server.public_key.encode(),
        body,
        EMPTY_LEDGER_HEAD.encode(),
    )
    signature = server.sign(LEDGER_LABEL, head + b'"type":"study"}').hex().encode()
    return head + b'"signature":"' + signature + b'","type":"study"}'


def test_what_is_signed_in_its_one_encoding_is_read():
    assert Entry.parse(signed_as_it_is(canonical_json(BODY))).body == BODY


@pytest.mark.parametrize("body", [b'{"a":1.0}', b'{"b":1,"a":1}', b'{"a":1,"a":2}', b"{ }", b'{"a":NaN}', b'{"a":1}}'])
def test_what_its_own_key_signed_in_another_encoding_is_refused(body):
    with pytest.raises(LedgerError, match=r"canonical form|not what this version writes"):
        Entry.parse(signed_as_it_is(body))


def test_of_many_levels_nothing_is_parsed_whoever_signed_them():
    deep = [b'{"a":' + b"[" * levels + b"]" * levels + b"}" for levels in (MAX_DEPTH - 2, MAX_DEPTH - 1, 10**6)]
    assert Entry.parse(signed_as_it_is(deep[0])).type == EntryType.STUDY
    for body in deep[1:]:
        with pytest.raises(LedgerError, match=f"levels, and an honest one at most {MAX_DEPTH}"):
            Entry.parse(signed_as_it_is(body))
    assert Entry.parse(signed_as_it_is(b'{"a":"' + b"[" * 99 + b'\\""}')).type == EntryType.STUDY


def test_who_has_no_key_has_nobody_parse_a_line():
    """Of a line whose signature is another's, no more is taken in memory than copies of it."""
    line = signed_as_it_is(b'{"a":[' + b"[]," * 300_000 + b"[]]}").replace(SERVER.public_key.encode(), b"00" * 32)
    tracemalloc.start()
    try:
        with pytest.raises(LedgerError, match="the signature of entry 0 does not verify"):
            Entry.parse(line)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(line)
    finally:
        tracemalloc.stop()


def test_a_signature_of_something_else_is_none():
    """The label keeps a ledger entry apart from all else that the key signs."""
    line = json.loads(LINES[0])
    signed = canonical_json({key: value for key, value in line.items() if key != "signature"})
    for label in (b"", b"grandrounds/envelope/v1\n", b"grandrounds/ledger/v2\n"):
        with pytest.raises(LedgerError, match="does not verify"):
            Entry.parse(canonical_json({**line, "signature": SERVER.sign(label, signed).hex()}))


# --- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", range(5))
@pytest.mark.parametrize("start", range(5))
def test_entries_that_a_ledger_has_may_stand_before_those_that_it_lacks(held, start):
    made = ledger(ENTRIES[:held])
    if start > held:
        if LINES[start:]:
            with pytest.raises(LedgerError, match="stands where entry"):
                made.continuation(LINES[start:])
        return
    made.add(made.continuation(LINES[start:]))
    assert list(made) == ENTRIES


BROKEN = {
    "an entry is missing": [0, 1, 3],
    "the first is missing": [1, 2, 3],
    "two are swapped": [0, 2, 1, 3],
    "all are reversed": [3, 2, 1, 0],
    "one stands twice": [0, 1, 1, 2],
}


@pytest.mark.parametrize("order", BROKEN.values(), ids=BROKEN)
def test_entries_that_do_not_follow_one_another_are_refused(order):
    with pytest.raises(LedgerError, match="stands where entry"):
        Ledger().continuation([LINES[i] for i in order])


@given(st.permutations(range(4)), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_no_order_but_the_one_is_taken(order, held):
    made = ledger(ENTRIES[:held])
    new = [i for i in order if i >= held]
    lines = [LINES[i] for i in order]
    if new == sorted(new):
        assert made.continuation(lines) == ENTRIES[held:]
    else:
        with pytest.raises(LedgerError):
            made.continuation(lines)


def test_another_history_is_refused_where_it_departs_and_where_it_goes_on():
    made = ledger(ENTRIES)
    for lines in (OTHER, OTHER[3:], OTHER[:1], [*LINES, OTHER[4]], [OTHER[4]]):
        with pytest.raises(LedgerError, match="history"):
            made.continuation(lines)
    assert list(made) == ENTRIES


def test_an_entry_that_was_signed_twice_with_another_body_is_another_history():
    again = deepcopy(BODY) | {"attempt": 9}
    fork = Entry.seal(SERVER, entry_type=EntryType.STUDY, body=again, sequence=3, previous=ENTRIES[2].hash)
    with pytest.raises(LedgerError, match="different history"):
        ledger(ENTRIES).continuation([fork.line])
    assert ledger(ENTRIES[:3]).continuation([fork.line]) == [fork]


def test_nothing_is_taken_of_lines_of_which_one_is_broken():
    made = ledger(ENTRIES[:1])
    with pytest.raises(LedgerError):
        made.continuation([*LINES[1:3], LINES[3][:-1]])
    assert list(made) == ENTRIES[:1]
