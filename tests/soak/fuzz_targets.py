"""Every parser that bytes from outside reach: what it is fed, what it may refuse with, and where mutation starts.

Hypothesis feeds them in ``test_malformed.py``, and atheris in ``fuzz.py`` (``make soak``).
"""

import copy
import json
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import rfc8785
from support.fhir_export import document, inline, patient, report, section
from support.ledger.fuzz_ledger import at_begin, feed_begin, feed_ledger, ledger_story, written
from support.ledger.ledger_history import copied
from support.secagg.cohort import EXCHANGES, Attempt, Cohort, fork
from support.study.federation import EVEN, Federation, small_study

from grandrounds.client.worker.worker import Worker
from grandrounds.common.crypto.identity import Identity, sha256
from grandrounds.common.data.quarantine import Quarantine
from grandrounds.common.data.records import read_records
from grandrounds.common.errors import (
    DataError,
    EnvelopeError,
    GrandRoundsError,
    LedgerError,
    OtherProgramError,
    ProtocolError,
    StorageError,
    StudyError,
)
from grandrounds.common.ledger.chain import Entry
from grandrounds.common.model.adapter import vector_bytes, vector_from_bytes
from grandrounds.common.protocol.envelope import ENVELOPE_LABEL, Envelope
from grandrounds.common.protocol.messages import SERVER, Message, pack, unpack
from grandrounds.common.schema import validated
from grandrounds.common.sources.source import DataSource
from grandrounds.common.study.manifest import Manifest
from grandrounds.common.study.step import LastStep, Trained
from grandrounds.common.study.study import read_study
from grandrounds.server.rounds.checkpoint import Checkpoint

SITE = "site-2"
STUDY_ID = "ab" * 32
# What breaks parsers more often than chance finds it; also the fuzzer's dictionary.
FRAGMENTS = (
    *(b"\0", b"\xff", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\x00\x10\x00\x00"),
    *(b"[", b"]", b"{", b"}", b'"', b",", b":", b"=", b".", b"'", b"\n", b"\r", b"\t", b"\\", b"\\ud800", b"\\u0000"),
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-0",
        b"0x",
        b"null",
        b"true",
        b'""',
        b"[]",
        b"{}",
        b"\xef\xbb\xbf",
        b"\xc0\x80",
    ),
    *(b"<!--", b"<pre>", b"<td>", b"&#0;", b"\\u-1?", b"\\uc", b"\\'8", b"\\bin9"),
    *(b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"a." * 300),
)


@dataclass(frozen=True)
class Target:
    """A parser: ``feed`` takes bytes and may raise ``refusals`` only; ``samples`` are inputs that it takes."""

    feed: Callable[[bytes], object]
    refusals: tuple[type[GrandRoundsError], ...]
    samples: Callable[[], Sequence[bytes]]

    def accepts(self, data: bytes) -> bool:
        """Whether the parser takes ``data``. What it raises beside its refusals is a finding."""
        try:
            self.feed(data)
        except self.refusals:
            return False
        return True


# --- envelopes and messages -------------------------------------------------------------------------------------------


def sealed_as_is(header: bytes, payload: bytes = b"") -> bytes:
    """An envelope around any header, signed."""
    signature = Identity.from_bytes(bytes(32)).sign(ENVELOPE_LABEL, header)
    return struct.pack("<I", len(header)) + header + signature + payload


@cache
def honest_attempts() -> dict[str, Attempt]:
    """One attempt of four sites, kept where each exchange is due."""
    attempt, kept = Cohort(claimed=1000).attempt(), {}
    while not attempt.server.done:
        kept[attempt.server.exchange] = attempt.fork()
        attempt.exchange()
    return kept


@cache
def envelopes() -> list[bytes]:
    """Everything that is said to and by one site in an attempt."""
    said = []
    for attempt in honest_attempts().values():
        message = bytes(attempt.server.messages()[SITE][:])
        said += [message, attempt.fork().answer(SITE, message)]
    return said


def headers() -> list[bytes]:
    return [Envelope.parse(wire).header for wire in envelopes()]


def feed_header(header: bytes) -> None:
    """Any header, and whatever it is then taken for."""
    envelope = Envelope.parse(sealed_as_is(header, _payload_of(header)))
    taken = [kind for kind in Message.__subclasses__() if _takes(kind, envelope)]
    if len(taken) != 1:
        raise EnvelopeError("no message", why="", fix="")


def _payload_of(header: bytes) -> bytes:
    for wire in envelopes():
        envelope = Envelope.parse(wire)
        if sha256(envelope.payload).encode() in header:
            return bytes(envelope.payload[:])
    return b""


def _takes(kind: type[Message], envelope: Envelope) -> bool:
    try:
        kind.of(envelope)
    except EnvelopeError:
        return False
    return True


# --- the machines: what is fed to them is signed by whom they expect --------------------------------------------------


def spoken(exchange: str, envelope: Envelope) -> bytes:
    """One message as the fuzzer changes it: exchange ‖ length of body ‖ body ‖ payload."""
    body = rfc8785.dumps({"exchange": envelope.exchange, **envelope.body})
    return bytes([EXCHANGES.index(exchange)]) + struct.pack("<H", len(body)) + body + envelope.payload[:]


def heard(data: bytes) -> tuple[str, str, dict[str, object], bytes] | None:
    """The exchange that is due, what is said instead, its body and payload; None where no header could hold them."""
    exchange, size = EXCHANGES[data[0] % len(EXCHANGES)] if data else "", int.from_bytes(data[1:3], "little")
    try:
        body = json.loads(data[3 : 3 + size])
        rfc8785.dumps(body)
        said = body.pop("exchange")
        bytes.fromhex(sha256(said.encode()))
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return None
    return exchange, said, body, data[3 + size :]


def _signed(
    identity: Identity, manifest: str, sender: str, said: str, body: dict[str, object], payload: bytes
) -> bytes:
    context: dict[str, Any] = {"manifest": manifest, "attempt": 1, "exchange": said, "sender": sender}
    return Envelope.seal(identity, **context, body=body, payload=payload).to_bytes()


def feed_client(data: bytes) -> None:
    if (message := heard(data)) is None:
        raise ProtocolError("nothing that a header could hold", why="", fix="")
    exchange, said, body, payload = message
    attempt = honest_attempts()[exchange].fork()
    wire = _signed(attempt.cohort.server, attempt.cohort.manifest, SERVER, said, body, payload)
    attempt.answer(SITE, wire)


def feed_server(data: bytes) -> None:
    """The server takes the answer, or drops its site and nobody else, and comes to an end without it.

    Whatever the last answer is, the sum is right: of noise, too, but for what the site does not show of its own.
    """
    if (message := heard(data)) is None:
        raise ProtocolError("nothing that a header could hold", why="", fix="")
    exchange, said, body, payload = message
    attempt = honest_attempts()[exchange].fork()
    good = {site: attempt.answer(site, wire) for site, wire in attempt.server.messages().items()}
    good[SITE] = _signed(attempt.cohort.identities[SITE], attempt.cohort.manifest, SITE, said, body, payload)
    for site, answer in good.items():
        attempt.server.receive(site, answer)
    reasons = dict(attempt.server.reasons)
    assert set(reasons) <= {SITE}
    attempt.server.advance()
    attempt.silent.add(SITE)
    while not (attempt.server.done or attempt.server.aborted):
        attempt.exchange()
    if exchange == EXCHANGES[-1] and attempt.server.done:
        assert attempt.exact or replace(attempt, unshown={SITE}).exact
    if reasons:
        raise ProtocolError(reasons[SITE], why="", fix="")


@cache
def federation() -> tuple[Federation, dict[str, tuple[Worker, bytes]]]:
    """Five workers, and one of them with what it is sent, kept where each exchange is due."""
    whole = Federation(
        study=small_study(), dimension=7, release=lambda manifest, site: lambda adapter, mechanism: np.ones(7, "<u4")
    )
    attempt, kept = whole.attempt(), {}
    while not attempt.done:
        kept[attempt.exchange] = (_worker(whole), bytes(attempt.messages()[SITE][:]))
        whole.exchange(attempt)
    return whole, kept


def _worker(whole: Federation, worker: Worker | None = None) -> Worker:
    worker = worker or whole.workers[SITE]
    twin = copy.copy(worker)
    twin._attempt = fork(worker._attempt) if worker._attempt else None
    twin._state = copied(worker._state)
    twin._ledger = copy.copy(worker._ledger)
    twin._ledger._state = twin._state
    return twin


def feed_worker(data: bytes) -> None:
    """Raw bytes, and the same as if the server had signed them: an answer, a refusal, or silence after the charge."""
    whole, kept = federation()
    message = heard(data)
    for worker, _ in kept.values() if message is None else [kept[message[0]]]:
        site = _worker(whole, worker)
        answers = [site.handle(data)]
        if message is not None:
            site = _worker(whole, worker)
            answers.append(site.handle(_signed(whole.server, whole.manifest.sha256, SERVER, *message[1:])))
        assert all(not answer or Envelope.parse(answer).sender == SITE for answer in answers)
    if message is None or not answers[-1] or Envelope.parse(answers[-1]).exchange == "refusal":
        raise ProtocolError("no answer", why="", fix="")


def to_client() -> list[bytes]:
    return [spoken(e, Envelope.parse(a.server.messages()[SITE])) for e, a in honest_attempts().items()]


def from_site() -> list[bytes]:
    attempts = honest_attempts().items()
    return [spoken(e, Envelope.parse(a.fork().answer(SITE, a.server.messages()[SITE]))) for e, a in attempts]


def to_worker() -> list[bytes]:
    return [spoken(exchange, Envelope.parse(wire)) for exchange, (_, wire) in federation()[1].items()]


# --- files ------------------------------------------------------------------------------------------------------------


def as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """``read`` on a file of such bytes."""

    def feed(data: bytes) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return read(path)

    return feed


TOML = b"""
[model]
target_modules = ["v_proj"]
[privacy]
trust = "distributed"
target_epsilon = 4.0
noise_multiplier = 1e0
[training]
rounds = 0x14
optimizer = 'sgd'
""" + b"".join(b'[[sites]]\nname = "site-%d"\nnominal_units = 40\n' % i for i in range(1, 6))

JSONL = [
    '{"patient_id": 1, "text": "a\\u00e9"}\n\n{"patient_id": "2", "text": "b"}\n',
    '{"patient_id": 1.0, "prompt": "a", "completion": "b"}',
    '{"patient_id": "x", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
]
CSV = [
    b'\xef\xbb\xbfpatient_id,text\r\n1,"a ""b"", c"\r\n2,d\r\n',
    b'patient_id,messages\n1,"[{""role"": ""user"", ""content"": ""a""}]"\n',
]


def exports() -> list[bytes]:
    """Patients who are linked, a note of each kind, and a Binary."""
    resources = [
        patient("1", ("replaced-by", "urn:uuid:2")),
        document({"contentType": "text/plain;charset=latin-1", "url": "x/Binary/3"}, category=[{"text": "a"}]),
        report(conclusion="b"),
        report(resourceType="Composition", section=[section("a", "b")]),
        {"resourceType": "Binary", "id": "3", "data": "YQ=="},
    ]
    return [b"\n".join(json.dumps(one).encode() for one in resources)]


def read_export(path: Path) -> object:
    return read_records(DataSource(files=(path,), format="fhir"), quarantine=Quarantine())


def feed_attachment(content_type: str, data: bytes) -> object:
    """Inline, in a document; what cannot be read is refused."""
    attachment = inline(data.decode("latin-1"), content_type, "latin-1")
    return as_file("a.ndjson", read_export)(json.dumps(document(attachment)).encode())


def manifest_json() -> list[bytes]:
    return [json.dumps(federation()[0].manifest.model_dump(mode="json")).encode()]


def feed_manifest(data: bytes) -> Manifest:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StudyError("no JSON", why="", fix="") from error
    return validated(Manifest, fields)


def parquet_files() -> list[bytes]:
    """Small tables: ids as text, integers and floats; dictionaries, nested messages, compression."""
    texts = {"patient_id": ["1", "2", "2"], "text": ["a", "b", "é"]}
    turns = [[{"role": "user", "content": "a"}]] * 2
    tables = [
        pyarrow.table(texts),
        pyarrow.table({"patient_id": [1, 2], "messages": turns}),
        pyarrow.table({"patient_id": [1.0, 2.0], "prompt": ["a", "b"], "completion": ["c", "d"]}),
    ]
    written = []
    ways: list[dict[str, Any]] = [{}, {"compression": "zstd"}, {"use_dictionary": False}]
    for table, options in zip(tables, ways, strict=True):
        buffer = BytesIO()
        pyarrow.parquet.write_table(table, buffer, **options)
        written.append(buffer.getvalue())
    return written


def checkpoints() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        first = Checkpoint.initial(study=STUDY_ID, adapter=np.ones(3, np.float32), losses=EVEN)
        after = Trained(adapter=np.zeros(3, np.float32), optimizer=bytes(12))
        last_step = LastStep(after=after, before=first.last_step.after, total=bytes(12))
        rows = np.vstack([first.perplexities, first.perplexities])
        later = replace(first, round=1, attempts=2, perplexities=rows, last_step=last_step)
        later.save(Path(folder))
        return [path.read_bytes() for path in Path(folder).iterdir()]


TARGETS: dict[str, Target] = {
    "envelope": Target(Envelope.parse, (EnvelopeError,), envelopes),
    "header": Target(feed_header, (EnvelopeError,), headers),
    "packed": Target(unpack, (EnvelopeError,), lambda: [pack([]), pack([b"a", b"", b"bc"]), pack([bytes(82)] * 4)]),
    "client": Target(feed_client, (EnvelopeError, ProtocolError), to_client),
    "server": Target(feed_server, (ProtocolError,), from_site),
    "worker": Target(feed_worker, (ProtocolError,), to_worker),
    "entry": Target(Entry.parse, (LedgerError,), lambda: ledger_story().lines),
    "ledger": Target(feed_ledger, (LedgerError, OtherProgramError), lambda: [written(ledger_story().lines)]),
    "begin": Target(feed_begin, (LedgerError,), lambda: [written(at_begin()[1])]),
    "adapter": Target(
        lambda data: vector_from_bytes(data, dimension=3), (EnvelopeError,), lambda: [vector_bytes(np.ones(3, "<f4"))]
    ),
    "study": Target(as_file("study.toml", read_study), (StudyError,), lambda: [TOML]),
    "manifest": Target(feed_manifest, (StudyError,), manifest_json),
    "jsonl": Target(as_file("a.jsonl", read_records), (DataError,), lambda: [text.encode() for text in JSONL]),
    "csv": Target(as_file("a.csv", read_records), (DataError,), lambda: CSV),
    "parquet": Target(as_file("a.parquet", read_records), (DataError,), parquet_files),
    "fhir": Target(as_file("a.ndjson", read_export), (DataError,), exports),
    "html": Target(
        partial(feed_attachment, "text/html"), (DataError,), lambda: [b"<p>a&lt;<table><td>b<td>c</table><pre>d"]
    ),
    "rtf": Target(
        partial(feed_attachment, "text/rtf"),
        (DataError,),
        lambda: [rb"{\rtf1\ansi\ansicpg1252{\fonttbl{\f0\fcharset0 A;}}\f0 a\'e9\u8364?\par}"],
    ),
    "checkpoint": Target(
        as_file("round-000001.checkpoint", lambda path: Checkpoint.load(path, STUDY_ID)), (StorageError,), checkpoints
    ),
}


def edited(data: bytes, edits: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    """``data`` after edits (how, where, how long, what): places beyond the end wrap around."""
    for how, at, length, what in edits:
        at %= len(data) + 1
        cut = data[at : at + length]
        replacement = {"insert": what + cut, "replace": what, "repeat": cut * 3, "delete": b""}[how]
        data = data[:at] + replacement + data[at + length :]
    return data
