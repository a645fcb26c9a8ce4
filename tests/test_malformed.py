"""Malformed bytes: whatever a parser is given, it takes it or refuses it in its own words, and within bounds."""

import io
import json
import struct
import tracemalloc
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from soak.fuzz_targets import FRAGMENTS, TARGETS, edited, headers, parquet_files, sealed_as_is, to_client

from grandrounds.common.ledger.chain import MAX_ENTRY_BYTES
from grandrounds.common.protocol.envelope import MAX_HEADER_BYTES
from grandrounds.common.protocol.messages import MAX_PARTS

EDITS = st.lists(
    st.tuples(
        st.sampled_from(["insert", "replace", "repeat", "delete"]),
        st.integers(0, 1 << 16),
        st.integers(0, 40),
        st.sampled_from(FRAGMENTS) | st.binary(max_size=8),
    ),
    max_size=4,
)


@pytest.mark.parametrize("name", TARGETS)
def test_every_sample_is_taken(name: str) -> None:
    """Else what grows out of them would test no more than the first check."""
    samples = TARGETS[name].samples()
    assert samples
    assert [sample for sample in samples if not TARGETS[name].accepts(sample)] == []


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_mutations_of_what_is_valid_are_taken_or_refused(name: str, data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(TARGETS[name].samples()))
    TARGETS[name].accepts(edited(sample, data.draw(EDITS)))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=60).map(lambda text: text.encode()))
def test_any_bytes_are_taken_or_refused(name: str, data: bytes) -> None:
    TARGETS[name].accepts(data)


def with_body(body: bytes) -> bytes:
    header = next(h for h in headers() if b'"survivors"' in h)
    start, end = header.index(b'"body":') + 7, header.index(b',"exchange"')
    return header[:start] + body + header[end:]


def with_entry_body(value: bytes) -> bytes:
    """An entry whose body has this value in it, and whose signature is of another."""
    line = TARGETS["entry"].samples()[0]
    start, end = line.index(b'"body":') + 7, line.index(b',"previous"')
    return line[:start] + b'{"x":' + value + b"}" + line[end:]


def npz(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(f"{name}.npy", member)
    return buffer.getvalue()


def npy(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


# Parser, input, and what may be allocated at the peak: so many times the input's length, beside what a parser needs.
SMALL_BYTES = 4 << 20
HOSTILE: dict[str, tuple[str, bytes, int]] = {
    "a header that claims 4 GiB": ("envelope", b"\xff\xff\xff\xff" + bytes(100), 4),
    "a header as long as may be": ("envelope", sealed_as_is(b" " * MAX_HEADER_BYTES), 4),
    "a payload that claims 2^40 bytes": (
        "header",
        headers()[1].replace(b'"payload_bytes":0', b'"payload_bytes":1099511627776'),
        20,
    ),
    "a body nested deep": ("header", with_body(b'{"u3":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), 20),
    "a body of many empty lists": ("header", with_body(b'{"u3":[' + b"[]," * 50_000 + b"[]]}"), 200),
    "a body of many keys": ("header", with_body(b"{" + b",".join(b'"%x":0' % i for i in range(60_000)) + b"}"), 200),
    "a body with a huge integer": ("header", with_body(b'{"u3":' + b"9" * 500_000 + b"}"), 20),
    "an entry nested deep": ("entry", with_entry_body(b"[" * 100_000 + b"]" * 100_000), 20),
    "an entry of many empty lists": ("entry", with_entry_body(b"[" + b"[]," * 50_000 + b"[]]"), 200),
    "an entry of many keys": (
        "entry",
        with_entry_body(b"{" + b",".join(b'"%x":0' % i for i in range(60_000)) + b"}"),
        200,
    ),
    "an entry with a huge integer": ("entry", with_entry_body(b"9" * 500_000), 20),
    "an entry longer than may be": ("entry", b" " * (MAX_ENTRY_BYTES + 1), 1),
    "a count of 2^32 - 1 parts": ("packed", b"\xff" * 40, 4),
    "parts of 2^64 bytes each": ("packed", struct.pack("<I", MAX_PARTS) + b"\xff" * 8 * MAX_PARTS, 20),
    "nothing but parts": ("packed", struct.pack("<I", MAX_PARTS) + bytes(8 * MAX_PARTS), 40),
    "ciphertexts with a count of 2^32 - 1": ("client", to_client()[2][:3] + to_client()[2][3:-400] + b"\xff" * 8, 400),
    "TOML nested deep": ("study", b"a=" + b"[" * 100_000, 40),
    "TOML tables nested deep": ("study", b"a=" + b"{a=" * 5_000, 40),
    "a TOML key of many parts": ("study", b"a." * 5_000 + b"a=1", 40),
    "a TOML integer of many digits": ("study", TARGETS["study"].samples()[0] + b"x=" + b"9" * 5_000, 40),
    "a TOML integer that has no decimal": ("study", TARGETS["study"].samples()[0] + b"x=0x" + b"f" * 5_000, 40),
    "a known TOML field that has no decimal": ("study", b"[training]\nrounds=0x" + b"f" * 5_000, 40),
    "a manifest nested deep": ("manifest", b'{"study":' * 50_000, 40),
    "a manifest that claims 2^400 numbers": ("manifest", json.dumps({"dimension": 2**400}).encode(), 40),
    "JSONL nested deep": ("jsonl", b'{"patient_id":' + b"[" * 100_000, 40),
    "JSONL with a huge integer": ("jsonl", b'{"patient_id":' + b"9" * 100_000 + b',"text":"a"}', 40),
    "CSV with one endless cell": ("csv", b'patient_id,text\n1,"' + b"a" * 1_000_000, 40),
    "CSV of many columns": ("csv", b"a," * 100_000 + b"\n", 200),
    "CSV with NUL": ("csv", b"patient_id,text\n1,a\0b\n\0", 40),
    "a Parquet column whose name is not UTF-8": ("parquet", parquet_files()[0].replace(b"text", b"\xff\xfe\xfd!"), 400),
    "an array that claims 2^56 bytes": (
        "checkpoint",
        npz(adapter=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (18014398509481984,)}")),
        1 << 56,  # numpy asks for them, and counts what it did not get
    ),
    "an array that unpacks to a thousand times its size": (
        "checkpoint",
        npz(
            zipfile.ZIP_DEFLATED,
            adapter=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5000000,)}", bytes(20_000_000)),
        ),
        40,
    ),
    "an array of objects": ("checkpoint", npz(adapter=npy("{'descr': '|O', 'fortran_order': False, 'shape': ()}")), 40),
    "an array's header nested deep": ("checkpoint", npz(adapter=npy("(" * 9_000)), 40),
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_small_input_does_not_become_large(hostile: str) -> None:
    name, data, factor = HOSTILE[hostile]
    TARGETS[name].samples()  # what is made once is not counted
    tracemalloc.start()
    try:
        accepted = TARGETS[name].accepts(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert accepted == (hostile == "nothing but parts")
    assert peak_bytes < SMALL_BYTES + factor * len(data)
