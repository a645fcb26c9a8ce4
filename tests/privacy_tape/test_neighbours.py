"""Two runs that differ in one unit and draw the same: the unit's own integers are all that differs between them."""

import os
import random
import secrets

import numpy as np
import pytest
from support.places import ROOT
from support.tape.neighbours import SEED, run
from support.tape.paths import FAILING, PATHS
from support.tape.planted import BUGS
from support.tape.run import bugs_table, kinds
from support.tape.tape import Tape

from grandrounds.common.crypto.csprng import Stream

FAILS = {id(unit) for unit in FAILING.values()}
# What loads a library of its own is looked at where others load it: tests/client/training/test_precisions.py.
HERE = [name for name, path in PATHS.items() if path.model != "nf4"]


@pytest.mark.parametrize("name", HERE)
def test_a_unit_moves_a_release_by_its_own_integers_and_nothing_else(name: str) -> None:
    pair = run(PATHS[name])
    assert pair.findings() == []
    assert (pair.moved > 0) == (id(PATHS[name].unit) not in FAILS)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_found_on_the_tape(name: str) -> None:
    findings = BUGS[name].run().findings()
    assert kinds(findings) == BUGS[name].found, findings


def test_the_architecture_page_has_the_table_of_planted_bugs() -> None:
    assert bugs_table() in (ROOT / "ARCHITECTURE.md").read_text("utf-8")


def _drawn(tape: Tape) -> list[bytes]:
    with tape.laid():
        numpy = np.random.default_rng().bytes(8)
        return [secrets.token_bytes(8), os.urandom(8), secrets.randbits(64).to_bytes(8), numpy]


def test_all_that_is_drawn_of_the_operating_system_comes_from_the_tape() -> None:
    one, again, other = (_drawn(Tape(seed=seed)) for seed in (SEED, SEED, b"another"))
    assert one == again
    assert not set(one) & set(other) and len(set(one)) == len(one)


def test_a_generator_that_is_not_on_the_tape_is_noticed() -> None:
    tape = Tape(seed=SEED)
    with tape.laid():
        random.random()
        np.random.random()
    assert tape.beside == ["random", "numpy"]


def test_the_coins_of_the_others_are_the_same_without_the_unit() -> None:
    words = []
    for tape, count in ((Tape(seed=SEED), 5), (Tape(seed=SEED, gap=("", 2, 4)), 4)):
        with tape.laid():
            stream = Stream.fresh()
            words.append([stream.words(count).tolist(), stream.words(3).tolist()])
    (coins, later), (without, later_without) = words
    assert [*coins[:2], *coins[3:]] == without
    assert later == later_without
