"""What leaves a client: no text of an exception, and of all that depends on records the masked integers alone."""

import hashlib
import json
import logging
import secrets
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.common.serde import message_to_proto
from support.study.federation import Federation, lost_after_shares, small_study, trained_on
from support.study.tiny_models import VOCABULARY, example_of, load_tiny, save_tiny_model, tiny_example

from grandrounds.client.node.app import make_app
from grandrounds.client.training.cohort import Cohort
from grandrounds.client.training.dp_sgd import DpSgd
from grandrounds.client.training.grad_samples import GradSampler, Shape
from grandrounds.client.worker import worker as client_worker
from grandrounds.client.worker.attempt import ClientAttempt
from grandrounds.common.protocol.envelope import Envelope
from grandrounds.common.protocol.messages import FIELD, RECORD
from grandrounds.deploy.simulation.local_grid import LocalGrid

SITES = tuple(f"site-{i}" for i in range(1, 6))
TOKENS = 16
NAME = "Mrs Abernathy"


def ask(connect, request=b"request"):
    """The Flower reply of a site's app."""
    app = make_app(connect)
    grid = LocalGrid({"site": app}, lambda site, message: False)
    record = ConfigRecord({FIELD: request}) if request is not None else ConfigRecord()
    content = RecordDict({RECORD: record})
    (identifier,) = grid.push_messages([Message(content, grid.nodes["site"], MessageType.TRAIN)])
    (reply,) = grid.pull_messages([identifier])
    return reply


def answer_of(reply):
    assert set(reply.content) == {RECORD}
    assert set(reply.content[RECORD]) == {FIELD}
    return reply.content[RECORD][FIELD]


def test_the_worker_s_bytes_travel_as_they_are():
    reply = ask(lambda context: lambda request: b"answer to " + request)
    assert answer_of(reply) == b"answer to request"


def test_the_app_connects_to_the_worker_of_its_node():
    reply = ask(lambda context: lambda request: str(context.node_config["site"]).encode())
    assert answer_of(reply) == b"site"


def in_connect(context):
    raise ConnectionError(f"no page for {NAME}")


def in_exchange(context):
    def exchange(request):
        try:
            raise ValueError(f"no page for {NAME}")
        except ValueError as error:
            raise RuntimeError(f"nor a bed for {NAME}") from error

    return exchange


@pytest.mark.parametrize("failing", [in_connect, in_exchange])
def test_the_text_of_an_exception_stays_at_the_site(failing, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    reply = ask(failing)
    assert answer_of(reply) == b""
    assert not reply.has_error()
    assert "Abernathy" not in repr(reply)
    assert b"Abernathy" not in message_to_proto(reply).SerializeToString()
    assert "Abernathy" not in caplog.text
    assert "Abernathy" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("request_", [None, "text", 7, [b"bytes"]])
def test_what_is_no_bytes_gets_no_answer_and_reaches_no_worker(request_):
    reached: list[bytes] = []
    assert answer_of(ask(lambda context: reached.append, request_)) == b""
    assert reached == []


# What may differ between two federations whose records differ: these fields of the signed headers, by what is sent,
# with the payloads that they are hashes of, and signatures. Keys are fresh in every attempt, and what they or a trained
# adapter enter by hash differs with them. All else is equal, and every length.
MAY_DIFFER = {
    "begin": {"body.adapter_sha256", "body.ledger_head", "payload_sha256"},
    "advert": {"body.channel_key", "body.mask_key", "body.seed_commitment", "body.noise_end", "body.begin_hash"},
    "adverts": {"payload_sha256"},
    "shares": {"payload_sha256"},
    "ciphertexts": {"payload_sha256"},
    "masked-input": {"payload_sha256"},
    "survivors": set(),
    "consistency": {"body.transcript"},
    "consistencies": {"payload_sha256"},
    "unmask": {"body.noise_link", "payload_sha256"},
}


def header_fields(envelope):
    """Every field of the signed header, by its path."""

    def paths(value, path):
        if not isinstance(value, dict):
            return {path: value}
        return {k: v for key, inner in value.items() for k, v in paths(inner, f"{path}.{key}" if path else key).items()}

    return paths(json.loads(envelope.header), "")


def differences(one, other, *, may_differ=MAY_DIFFER):
    """Where the messages of two runs, in both directions, differ beyond what may; empty if nowhere."""
    if outline(one) != outline(other):
        return ["which messages are sent, in which order, or their lengths"]
    found = []
    for first, second in zip(envelopes(one), envelopes(other), strict=True):
        allowed = may_differ.get(first.exchange, set())
        fields, others = header_fields(first), header_fields(second)
        differing = {path for path in fields.keys() | others.keys() if fields.get(path) != others.get(path)}
        found += [f"{path} of {first.exchange} from {first.sender}" for path in differing - allowed]
    return found


def outline(run):
    """Who was sent and answered what, and how long it was."""
    return [
        (traffic.site, traffic.exchange, traffic.attempt, len(traffic.request), len(traffic.answer or b""))
        for traffic in run.traffic
    ]


def envelopes(run):
    """Every message that arrived, in order."""
    wires = [wire for traffic in run.traffic for wire in (traffic.request, traffic.answer)]
    return [Envelope.parse(wire) for wire in wires if wire]


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    model = load_tiny(save_tiny_model(tmp_path_factory.mktemp("llama")))
    return GradSampler(model, [Shape(TOKENS, 4)])


class UnreadableCohort(Cohort):
    """Fails as a whole, with a patient's name in the message."""

    def draw(self, **options):
        raise OSError(f"no page for {NAME}")


def units(seed, *, count=6, records=1):
    rng = np.random.default_rng(seed)

    def record():
        return tiny_example(rng, length=int(rng.integers(4, TOKENS + 1)), max_tokens=TOKENS)

    return [[record() for _ in range(records)] for _ in range(count)]


FAILING = [
    [example_of(np.full(TOKENS, VOCABULARY, np.int32), np.full(TOKENS, VOCABULARY, np.int32))],  # no such token
    [example_of(np.zeros(3, np.int32), np.zeros(3, np.int32))],  # another length
    [None],
]
OTHER_RECORDS = {
    "other texts": units(2),
    "more units": units(3, count=9),
    "more records of each": units(4, records=3),
    "some records that fail": [*units(5), *FAILING],
    "only records that fail": FAILING,
}


def federation(sampler, site_units, *, cohort=Cohort, trust="distributed", **training):
    study = small_study(
        trust=trust,
        noise_multiplier=8.0,
        privacy={"sampling_probability": 0.5},
        training={"rounds": 2, "max_attempts": 4, **training},
        secagg={"update_range": 100},
    )
    release = trained_on(dict.fromkeys(SITES, site_units), sampler, cohort=cohort)
    return Federation(study=study, dimension=sampler.model.layout.dimension, release=release)


def with_records(run, sampler, site_units, *, cohort=Cohort):
    """The same study and keys with other records."""
    return replace(run, release=trained_on(dict.fromkeys(SITES, site_units), sampler, cohort=cohort))


def network(site, envelope):
    """Two sites are lost in the first attempt, which aborts it, and one in the second."""
    return lost_after_shares(site_1=1, site_2=1)(site, envelope) or lost_after_shares(site_3=2)(site, envelope)


@pytest.fixture(scope="module", params=["distributed", "local"])
def baseline(request, sampler):
    run = federation(sampler, units(1), trust=request.param).run(network)
    assert len(run.training.rounds) == 2
    assert run.training.accountant.attempts_committed == 3
    return run


@pytest.mark.parametrize("records", OTHER_RECORDS)
def test_nothing_that_depends_on_records_leaves_a_client_but_masked_integers(baseline, sampler, records):
    other = with_records(baseline, sampler, OTHER_RECORDS[records]).run(network)
    assert differences(baseline, other) == []


def test_a_data_path_that_fails_never_stops_its_site(baseline, sampler, caplog):
    other = with_records(baseline, sampler, units(1), cohort=UnreadableCohort).run(network)
    assert differences(baseline, other) == []
    assert len(other.training.rounds) == 2
    assert "Abernathy" not in caplog.text


def test_a_failure_that_stops_its_site_is_noticed(baseline, sampler, monkeypatch):
    monkeypatch.setattr(DpSgd, "_sum_or_zero", lambda dp_sgd, draw: dp_sgd.sum_units(draw()))
    stopped = with_records(baseline, sampler, units(1), cohort=UnreadableCohort).run(network)
    assert differences(baseline, stopped) == ["which messages are sent, in which order, or their lengths"]


class Telling(ClientAttempt):
    def __init__(self, *, charge_counter, **options):
        super().__init__(charge_counter=charge_counter + len(OTHER_RECORDS["more units"]), **options)


def test_a_count_of_units_that_leaves_a_site_is_noticed(baseline, sampler, monkeypatch):
    monkeypatch.setattr(client_worker, "ClientAttempt", Telling)
    assert differences(baseline, with_records(baseline, sampler, units(1)).run(network))


def same_randomness(monkeypatch):
    """From here on, the operating system's randomness begins as after every other call of this function."""
    calls = count()
    monkeypatch.setattr(secrets, "token_bytes", lambda size: hashlib.shake_256(b"%d" % next(calls)).digest(size))
    monkeypatch.setattr(secrets, "randbelow", lambda bound: int.from_bytes(secrets.token_bytes(48), "big") % bound)


@pytest.mark.parametrize("records", OTHER_RECORDS)
def test_under_the_same_randomness_the_masked_integers_are_all_that_differs(sampler, records, monkeypatch):
    run = federation(sampler, units(1), rounds=1)
    same_randomness(monkeypatch)
    run.run()
    other = with_records(run, sampler, OTHER_RECORDS[records])
    same_randomness(monkeypatch)
    other.run()
    assert differences(run, other, may_differ={"masked-input": {"payload_sha256"}}) == []
    assert len(differences(run, other, may_differ={})) == len(SITES), "and they do differ"
