"""The benchmark compares two protocols that compute the same mean, and measures what it says."""

import math
from typing import Any, Literal

import numpy as np
import pytest
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState, _collect_masked_vectors
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import Key

from grandrounds.common.errors import StudyError
from grandrounds.deploy.bench import flower_secagg
from grandrounds.deploy.bench.flower_secagg import play_flower
from grandrounds.deploy.bench.secagg import SecaggBench, secagg_lines, secagg_table, table_lines
from grandrounds.deploy.bench.secagg_attempt import BenchCohort, Clock, play_ours
from grandrounds.deploy.bench.secagg_memory import client_peak_bytes, server_peak_bytes


def cohort(dimension: int = 500, modulus_bits: Literal[16, 32] = 32, dropouts: int = 2) -> BenchCohort:
    return BenchCohort.fresh(sites=6, dimension=dimension, dropouts=dropouts, modulus_bits=modulus_bits)


@pytest.mark.parametrize("play", [play_ours, play_flower])
@pytest.mark.parametrize("dropouts", [0, 1, 2])
def test_both_protocols_give_the_survivors_mean(play, dropouts):
    sites, clock = cohort(dropouts=dropouts), Clock()
    mean, bytes_per_parameter = play(sites, clock)
    sites.check(mean)
    assert bytes_per_parameter >= 4
    assert all(clock.seconds[work] > 0 for work in ("client", "client_encoding", "server", "server_encoding"))


def test_a_wrong_mean_is_no_figure():
    sites = cohort()
    mean, _ = play_ours(sites, Clock())
    mean[-1] += 1e-4
    with pytest.raises(RuntimeError, match="wrong"):
        sites.check(mean)


def test_the_baseline_sends_what_flower_s_own_mod_sends():
    sites = cohort()
    ends = [flower_secagg._FlowerSite(i, sites, Clock()) for i in range(sites.sites)]
    public_keys = {i: end.advertise() for i, end in enumerate(ends)}
    ciphertexts = {i: end.share(public_keys) for i, end in enumerate(ends)}
    end, received = ends[2], {i: ciphertexts[i][2] for i in (0, 1, 3, 4)}
    update = sites.update("site-3")

    state = SecAggPlusState()
    state.nid, state.threshold, state.max_weight = 2, sites.parameters.threshold, 1.0
    state.clipping_range, state.target_range, state.mod_range = 8.0, 2**22, 2**32
    state.sk1, state.rd_seed, state.ss2_dict = end._mask_key, end._seed, end._channels
    state.public_keys_dict, state.rd_seed_share_dict, state.sk1_share_dict = dict(public_keys), {}, {}
    configs: Any = {Key.CIPHERTEXT_LIST: list(received.values()), Key.SOURCE_LIST: list(received)}
    np.random.seed(0)  # of the stochastic rounding
    expected = _collect_masked_vectors(state, configs, 1, ndarrays_to_parameters([update]))
    np.random.seed(0)
    assert end.mask(received, update) == expected[Key.MASKED_PARAMETERS]


def test_too_many_dropouts_are_refused():
    with pytest.raises(StudyError, match="3 of 6 sites"):
        cohort(dropouts=3)


def test_the_peaks_are_those_of_processes_that_hold_vectors():
    small, large = cohort(dimension=1000), cohort(dimension=3_000_000)
    vector_bytes = large.parameters.update_bytes
    assert client_peak_bytes(large) - client_peak_bytes(small) > 1.5 * vector_bytes
    assert server_peak_bytes(large) - server_peak_bytes(small) > 1.5 * vector_bytes


def test_a_run_gives_finite_figures_and_says_them():
    bench = SecaggBench(sites=4, dimension=20_000, dropouts=1, modulus_bits=16, repetitions=1)
    figures = bench.run()
    named = "client_cpu_ratio server_cpu_ratio floor_ratio bytes_per_parameter client_peak_bytes server_peak_bytes"
    assert set(named.split()) < figures.keys()
    assert all(math.isfinite(figure) and figure > 0 for figure in figures.values())
    assert 2 < figures["bytes_per_parameter"] < 2.05
    assert "flwr" in secagg_lines(figures, bench)


def test_the_table_has_a_row_for_every_size():
    rows = secagg_table(SecaggBench(sites=6, dimension=1000, dropouts=1, modulus_bits=32, repetitions=1))
    sizes = [(row["sites"], row["dimension"]) for row in rows]
    assert sizes == [(6, 1000), (6, 4000), (6, 16000), (3, 16000)]
    assert len(table_lines(rows).splitlines()) == 1 + len(rows)
