"""A site's policy: careful by default, and it names every point in which a study breaks it."""

import pytest
from support.study.allowed_study import IDENTITIES, KEYS, NOISELESS, SERVER, SITE, manifest, policy

from grandrounds.client.budget.policy import Policy, check_policy, read_policy
from grandrounds.common.crypto.identity import shown_key
from grandrounds.common.errors import PrivacyError, StudyError
from grandrounds.common.schema import validated
from grandrounds.common.system.package_hash import running_sha256
from grandrounds.common.version import __version__
from grandrounds.deploy.simulation.sites import simulated_policy


def shown(*keys):
    """Keys as they are printed."""
    return ", ".join(map(shown_key, keys))


def broken(rules, study, name=SITE):
    """The points of the refusal."""
    with pytest.raises(StudyError) as refusal:
        check_policy(rules, study, name=name)
    return refusal.value.what.removeprefix("the study breaks this site's policy, policy.toml: ").split("; ")


@pytest.mark.parametrize("trust", ["distributed", "local"])
def test_a_study_at_every_limit_is_allowed(trust):
    check_policy(policy(), manifest(trust=trust), name=SITE)


@pytest.mark.parametrize(
    ("rules", "study", "said"),
    [
        ({"largest_epsilon": 1.9}, {}, "study.largest_epsilon is 1.9, and the study needs 2.0 (its ε)"),
        ({"largest_delta": 9e-5}, {}, "study.largest_delta is 9e-05, and the study needs 0.0001 (its δ)"),
        (
            {"trust": ["local"]},
            {},
            "study.trust lists local, and the study needs in it distributed (who adds the noise)",
        ),
        (
            {"trust": []},
            {},
            "study.trust lists nothing, and the study needs in it distributed (who adds the noise)",
        ),
        (
            {"smallest_honest_shares": 4},
            {},
            "study.smallest_honest_shares is 4, and the study needs 3 (honest shares of noise that are certain in every"
            " sum)",
        ),
        (
            {"models": [{"name": "other"}, {"sha256": "44" * 32}]},
            {},
            f"study.models lists other (any files), any ({'44' * 32}), and the study needs in it builtin ({'22' * 32}) "
            "(its base model)",
        ),
        (
            {"package_versions": ["9.9"]},
            {},
            f"study.package_versions lists 9.9, and the study needs in it {__version__} (the program's version)",
        ),
        (
            {"package_sha256": ["55" * 32]},
            {},
            f"study.package_sha256 lists {'55' * 32}, and the study needs in it {running_sha256()} (of the program's "
            "files)",
        ),
        (
            {"package_sha256": []},
            {},
            f"study.package_sha256 lists nothing, and the study needs in it {running_sha256()} (of the program's "
            "files)",
        ),
        (
            {"verified_peers": [KEYS[1], *KEYS[3:]]},
            {},
            f"study.verified_peers lists {shown(KEYS[1], *KEYS[3:])}, and the study needs in it "
            f"{shown(SERVER.public_key)} (the server's key)",
        ),
        (
            {"verified_peers": KEYS[:2]},
            {},
            f"study.verified_peers lists {shown(*KEYS[:2])}, and the study needs in it {shown(*KEYS[3:])} (the keys of "
            "site-3, site-4, site-5, of which 1 may be missing, as many as it assumes corrupt)",
        ),
        (
            {},
            {"privacy": {"unit": "record"}},
            "data.unit is patient, and the study needs record (it protects each record)",
        ),
        (
            {},
            {"privacy": NOISELESS},
            "data.synthetic_data_only is false, and the study needs true (it adds no noise, which is for records of "
            "nobody)",
        ),
    ],
)
def test_each_point_is_named_with_what_the_study_has_and_what_the_site_allows(rules, study, said):
    assert broken(policy(**rules), manifest(**study)) == [said]


NAMED = ("largest_epsilon", "largest_delta", "trust", "models", "server's key", "keys of site-1, site-3")


def test_all_points_are_named_at_once():
    points = broken(Policy(), manifest())
    assert len(points) == 6
    for point, part in zip(points, NAMED, strict=True):
        assert part in point


def test_a_site_that_is_not_in_the_study_is_told_so():
    (point,) = broken(policy(), manifest(), name="site-9")
    assert point == "name in site.toml is site-9, and the study's sites are site-1, site-2, site-3, site-4, site-5"


@pytest.mark.parametrize("unverified", range(5))
def test_unverified_sites_count_towards_those_assumed_corrupt(unverified):
    others = [IDENTITIES[site].public_key for site in IDENTITIES if site != SITE]
    rules = policy(verified_peers=[SERVER.public_key, *others[unverified:]])
    if unverified <= 1:
        check_policy(rules, manifest(), name=SITE)
    else:
        lacking = [site for site in IDENTITIES if site != SITE][:unverified]
        assert f"the keys of {', '.join(lacking)}, of which 1 may be missing" in broken(rules, manifest())[0]


def test_a_model_is_known_by_its_name_by_its_files_or_by_both():
    for known in ({"name": "builtin"}, {"sha256": "22" * 32}, {"name": "builtin", "sha256": "22" * 32}):
        check_policy(policy(models=[known]), manifest(), name=SITE)
    assert broken(policy(models=[{"name": "builtin", "sha256": "55" * 32}]), manifest())


def test_a_key_is_read_as_it_is_printed_and_without_the_spaces():
    printed = [shown_key(key).upper() for key in KEYS]
    assert policy(verified_peers=printed) == policy(verified_peers=KEYS)
    check_policy(policy(verified_peers=printed), manifest(), name=SITE)


def test_honest_shares_are_not_asked_for_under_local_trust():
    check_policy(policy(smallest_honest_shares=5), manifest(trust="local"), name=SITE)


def test_a_study_without_noise_is_for_synthetic_records_only():
    check_policy(policy(data={"synthetic_data_only": True}), manifest(privacy=NOISELESS), name=SITE)


def saying(**fields):
    """A manifest that says this of every site."""
    study = manifest()
    sites = tuple(site.model_copy(update=fields) for site in study.study.sites)
    return study.model_copy(update={"study": study.study.model_copy(update={"sites": sites})})


def test_limits_that_a_study_quotes_of_a_site_are_its_policy_s():
    own = policy()
    right = {"largest_epsilon": own.study.largest_epsilon, "budget_epsilon": own.data.epsilon}
    check_policy(own, saying(**right), name=SITE)
    for field, stated in (("largest_epsilon", "study.largest_epsilon"), ("budget_epsilon", "data.epsilon")):
        (point,) = broken(own, saying(**{**right, field: 99.0}))
        assert point == f"{stated} is {right[field]}, and the study needs 99.0 (it says so of this site)"


MINIMISED = {"minimise": {"shift_dates": True, "numbers": True}}


@pytest.mark.parametrize(
    ("rules", "stated", "done"),
    [
        ({}, ["dates shifted"], "nothing"),
        (MINIMISED, ["dates shifted"], "dates shifted, long numbers replaced"),
        (MINIMISED, [], "dates shifted, long numbers replaced"),
    ],
)
def test_what_a_study_says_a_site_takes_out_of_its_records_is_exactly_what_its_policy_does(rules, stated, done):
    own = policy().model_copy(update={"minimise": validated(Policy, rules).minimise})
    (point,) = broken(own, saying(minimised=tuple(stated)))
    assert (
        point == f"minimise is {done}, and the study needs {', '.join(stated) or 'nothing'} (it says so of this site)"
    )
    for said in (None, own.minimise.in_words, own.minimise.in_words[::-1]):
        check_policy(own, saying(minimised=said), name=SITE)


@pytest.mark.parametrize("fields", [{}, {"largest_epsilon": 8.0}, {"budget_epsilon": 9.0}])
def test_a_simulated_site_s_limits_are_those_that_the_study_quotes(fields):
    study = saying(**fields)
    for site in study.study.sites:
        check_policy(simulated_policy(study, site, opted_out=None), study, name=site.name)


def test_only_the_site_itself_calls_its_records_synthetic():
    calling = saying(sensitivity="synthetic")
    (point,) = broken(policy(), calling)
    needed = "data.synthetic_data_only is false, and the study needs true (it calls this site's records synthetic)"
    assert point == needed
    check_policy(policy(data={"synthetic_data_only": True}), calling, name=SITE)


def test_the_default_policy_lets_nobody_in_and_promises_little():
    rules = Policy()
    assert (rules.study.models, rules.study.verified_peers) == ((), ())
    assert not rules.data.synthetic_data_only
    assert (rules.study.largest_epsilon, rules.data.epsilon) == (1.0, 1.0)


def test_a_policy_is_read_with_its_paths_beside_it(tmp_path):
    path = tmp_path / "site" / "policy.toml"
    path.parent.mkdir()
    path.write_text(
        '[data]\nopted_out = "private/out.txt"\nfilter = "rdp"\norder = 16\n[minimise]\nnames_file = \'staff.txt\'\n',
        encoding="utf-8",
    )
    rules = read_policy(path)
    assert rules.minimise.names_file == tmp_path / "site" / "staff.txt"
    assert rules.data.opted_out == tmp_path / "site" / "private" / "out.txt"
    assert (rules.data.filter, rules.data.order, rules.study) == ("rdp", 16, Policy().study)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[study]\nlargest_epsilno = 4.0\n", "study.largest_epsilno: no such field"),
        ("[data]\nsynthetic_data_only = 'no'\n", "data.synthetic_data_only"),
        ("[study]\nlargest_epsilon = 1000.0\n", "study.largest_epsilon = 1000.0"),
        ("[study]\nverified_peers = ['AB']\n", "study.verified_peers.0"),
        ("[[study.models]]\n", "study.models.0.name: it is missing, and so is sha256"),
        ("[data]\nfilter = 'rdp'\n", "data.order"),
        ("[data]\norder = 8\n", "data.order"),
        ("[study]\ntrust = ['blind']\n", "study.trust.0"),
        ("[study\n", "cannot be read"),
        ("[minimise]\nreplace = [{ pattern = '(', with = 'x' }]\n", "minimise.replace.0.pattern"),
    ],
)
def test_a_policy_that_does_not_mean_what_it_says_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(StudyError) as refusal:
        read_policy(path)
    assert refusal.value.what.startswith(str(path))
    assert said in refusal.value.what


def test_an_order_that_leaves_nothing_of_the_budget_is_refused():
    rules = policy(data={"filter": "rdp", "order": 2, "epsilon": 0.1})
    with pytest.raises(PrivacyError, match="order 2 leaves nothing"):
        rules.data.data_asset()
