"""Fifty and a hundred sites run a whole attempt, and lose a tenth of them at every stage there is."""

import pytest
from support.secagg.cohort import EXCHANGES, Cohort

from grandrounds.common.secagg.parameters import default_threshold, largest_corrupt


@pytest.mark.parametrize("sites", [50, 100])
def test_a_tenth_of_a_large_cohort_may_drop_out_at_different_stages(sites: int) -> None:
    cohort = Cohort(sites=sites, corrupt_sites=largest_corrupt(sites, default_threshold(sites)), dimension=100)
    dropped = cohort.names[::10]
    drops = {site: EXCHANGES[i % len(EXCHANGES)] for i, site in enumerate(dropped)}
    attempt = cohort.run(drops=drops)
    assert attempt.server.dropouts == drops
    lasted = {site for site in cohort.names if drops.get(site) not in EXCHANGES[:3]}
    assert set(attempt.server.survivors) == lasted, "who has sent its masked input is in the sum"
    assert attempt.exact
