"""What a site is told that a study needs is what its policy is held against: enough, and nothing to spare."""

import re
import tomllib

import pytest
from support.study.allowed_study import NOISELESS, SITE, manifest

from grandrounds.client.budget.policy import Policy, violations
from grandrounds.common.schema import validated
from grandrounds.deploy.enrolment.needed_policy import needed_policy


def broken(text, study):
    """The fields in which the study breaks the policy of this text."""
    return {point.field for point in violations(validated(Policy, tomllib.loads(text)), study, name=SITE)}


@pytest.mark.parametrize("changed", [{}, {"trust": "local"}, {"privacy": NOISELESS}])
def test_the_policy_that_a_study_needs_is_enough_once_its_keys_were_compared(changed):
    study = manifest(**changed)
    text = needed_policy(study, SITE)
    assert broken(text, study) == {"study.verified_peers"}
    assert broken(text.replace('# "', '"'), study) == set()


def test_the_policy_that_a_study_needs_has_nothing_to_spare():
    study = manifest()
    for stated, less in (("epsilon = 2.0", "1.99"), ("delta = 0.0001", "9e-5"), ("shares = 3", "4")):
        text = needed_policy(study, SITE).replace(stated, re.sub("= .*", f"= {less}", stated))
        assert len(broken(text, study)) == 2, stated


def test_a_site_is_told_what_the_study_says_that_it_takes_out_of_its_records():
    study = manifest()
    sites = tuple(site.model_copy(update={"minimised": ("dates shifted",)}) for site in study.study.sites)
    stating = study.model_copy(update={"study": study.study.model_copy(update={"sites": sites})})
    remark = "\n\n# [minimise] has to do what the study says of this site, and no more: dates shifted.\n"
    assert needed_policy(stating, SITE).endswith(remark)
    assert "[minimise]" not in needed_policy(study, SITE)
