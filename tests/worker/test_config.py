"""`site.toml`: closed, anchored at its own folder, and a token that nobody else can read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from suture_contract.errors import SutureError
from suture_worker.config import load_site, prepare_state, read_token


@pytest.fixture
def changed(tmp_path, make):
    def change(old: str, new: str) -> Path:
        path = make.write_site(tmp_path)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        return path

    return change


def test_paths_are_relative_to_the_file(tmp_path, make, monkeypatch):
    make.write_site(tmp_path / "deep" / "site")
    monkeypatch.chdir(tmp_path)
    config = load_site("deep/site/site.toml")
    here = tmp_path / "deep" / "site"
    assert config.path == here / "site.toml"
    assert config.state == here / "state"
    assert config.hub.token_file == here / "token"
    assert config.datasets["patches"].path == here / "patches.npz"


def test_absolute_paths_and_defaults_stay(changed, tmp_path):
    config = load_site(changed('state = "state"', f'state = "{tmp_path}/elsewhere"'))
    assert config.state == tmp_path / "elsewhere"
    assert config.policy.min_samples == 11
    assert config.broker is None
    assert config.limits.seconds == 4 * 3600


@pytest.mark.parametrize("name", ["min_patients", "min_samples"])
def test_the_least_number_of_patients_has_two_names(changed, name):
    assert load_site(changed("min_samples = 11", f"{name} = 30")).policy.min_samples == 30


def test_the_least_number_of_patients_is_said_once(changed):
    with pytest.raises(SutureError, match="min_samples"):
        load_site(changed("min_samples = 11", "min_samples = 11\nmin_patients = 30"))


def test_state_and_token_have_defaults(tmp_path):
    (tmp_path / "site.toml").write_text('[hub]\nurl = "https://hub.example/"\n')
    config = load_site(tmp_path / "site.toml")
    assert config.hub.url == "https://hub.example"
    assert (config.state, config.hub.token_file) == (tmp_path / "state", tmp_path / "token")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('device = "cpu"', 'device = "cpu"\ncolour = 3', "site.colour: there is no field 'colour'"),
        ("[policy]", "[polcy]", "polcy: there is no field 'polcy'"),
        ('device = "cpu"', 'device = "tpu"', "site.device"),
        ('url = "http', 'url = "ftp', "hub.url"),
        ('url = "http://', 'url = "http://user:secret@', "hub.url"),
        ("min_samples = 11", "min_samples = 1", "policy.min_samples"),
        ("min_samples = 11", "min_patients = 1", "policy.min_patients"),
        ("min_samples = 11", 'min_samples = "many"', "policy.min_samples"),
        ('actions = ["fit", "evaluate"]', 'actions = ["fit", "publish"]', "policy.allow.0.actions.1"),
        ('datasets = ["patches"]', 'datasets = ["ptches"]', "policy.allow[0].datasets: there is no [datasets.ptches]"),
        ("min_samples = 11", "min_per_class = 1", "policy.min_per_class"),
        ("min_samples = 11", "decimals = 9", "policy.decimals"),
        ('parties = ["north"]', 'parties = ["north"]\napproval = "maybe"', "policy.allow.0.approval"),
        ('parties = ["north"]', 'parties = ["north"]\nrelease = true', "policy.allow.0.release"),
        ('parties = ["north"]', 'parties = ["north"]\nmetrics = ["beauty"]', "policy.allow.0.metrics.0"),
        ('members_from = ["north", "south", "east"]', "members_from = []", "policy.allow.0.members_from"),
        ('parties = ["north"]', 'parties = ["north"]\nmax_model_mib = 0', "policy.allow.0.max_model_mib"),
        ('parties = ["north"]', 'parties = ["north"]\noperators = ["os.system"]', "policy.allow.0.operators.0"),
        ('parties = ["north"]', 'parties = ["north"]\nevaluations_per_month = -1', "allow.0.evaluations_per_month"),
        (
            'parties = ["north"]',
            'parties = ["north"]\nmin_sample = 2',
            "policy.allow.0.min_sample: there is no field 'min_sample'",
        ),
        ('parties = ["north"]', 'parties = ["north"]\nmin_samples = 50', "are for a rule of its own"),
        ('parties = ["north"]', 'parties = ["north"]\nepsilon = 1', "epsilon and delta belong together"),
        ('parties = ["north"]', "parties = []", "policy.allow.0.parties"),
        ('parties = ["north"]', 'parties = ["no/rth"]', "policy.allow.0.parties.0"),
        ('format = "npz"', 'format = "pickle"', "datasets.patches.format"),
        ('path = "patches.npz"', "path = 3", "datasets.patches.path"),
        ("[limits]", '[broker]\nurl = "amqp://x"\n[limits]', "broker.url"),
        ("threads = 1", "threads = 0", "limits.threads"),
        ("threads = 1", 'threads = "1"', "limits.threads: a number is wanted, without quotes"),
        ("threads = 1", "threads = true", "limits.threads: a number is wanted, not true or false"),
        ("[limits]", '[limits]\ndivide_seconds = "60"', "limits.divide_seconds: a number is wanted, without quotes"),
        ('device = "cpu"', 'device = "cpu"\nmetrics_port = "9108"', "site.metrics_port: a number is wanted"),
        ('device = "cpu"', 'device = "cpu"\ninspect = "yes"', "site.inspect: true or false is wanted"),
        ('device = "cpu"', 'device = "cpu"\ninspect = 1', "site.inspect: true or false is wanted"),
        ('parties = ["north"]', 'parties = ["north"]\nmax_model_mib = "5"', "policy.allow.0.max_model_mib: a number"),
        ('format = "npz"', 'format = "npz"\nintensity = ["0", "255"]', "datasets.patches.intensity: a number"),
        ('format = "npz"', 'format = "npz"\nsplit = { seed = "1" }', "datasets.patches.split.seed: a number"),
        ('parties = ["north"]', 'parties = ["north"]\nmin_patients = 30', "per_month and min_patients are"),
        ("[site]", '[site]\nname = "main"', "site.name: there is no field 'name'"),
        ("[hub]", 'path = "x"\n[hub]', "path: unknown field"),
        ("[site]", "datasets = 3\n[site]", "hub.datasets: there is no field 'datasets'"),
    ],
)
def test_what_is_not_in_order_is_named(changed, old, new, field):
    with pytest.raises(SutureError) as caught:
        load_site(changed(old, new))
    assert caught.value.code == "site.invalid"
    assert field in caught.value.message
    assert caught.value.where.endswith("site.toml")
    assert caught.value.hint
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "meant"),
    [
        ("[policy]", "[polcy]", "'policy'"),
        ('device = "cpu"', 'devise = "cpu"', "'device'"),
        ('actions = ["fit", "evaluate"]', 'actions = ["fit", "evalute"]', "'evaluate'"),
        ('parties = ["north"]', 'parties = ["north"]\nmetrics = ["acuracy"]', "'accuracy'"),
        ('parties = ["north"]', 'parties = ["north"]\nmin_sample = 2', "'min_samples'"),
        ('parties = ["north"]', 'parties = ["north"]\napproval = "asks"', "'ask'"),
        ('datasets = ["patches"]', 'datasets = ["ptches"]', "'patches'"),
        ('format = "npz"', 'format = "npy"', "'npz'"),
        ('format = "npz"', 'format = "npz"\nlables = ["a"]', "'labels'"),
        ('parties = ["north"]', 'parties = ["north"]\noperators = ["aten.rellu.default"]', "'aten.relu.default'"),
    ],
)
def test_what_was_meant_is_said(changed, old, new, meant):
    with pytest.raises(SutureError) as caught:
        load_site(changed(old, new))
    assert "did you mean" in caught.value.message
    assert meant in caught.value.message
    assert "docs/site-operator.md" in caught.value.hint


@pytest.mark.parametrize("url", ["https://hub.example/", "https://hub.example/v1", "https://hub.example/v1/"])
def test_the_hubs_address_may_end_as_people_copy_it(changed, url):
    assert load_site(changed('url = "http://127.0.0.1:9"', f'url = "{url}"')).hub.url == "https://hub.example"


def test_an_address_without_its_scheme_is_asked_about(changed):
    with pytest.raises(SutureError, match=r"did you mean 'https://hub\.example'"):
        load_site(changed('url = "http://127.0.0.1:9"', 'url = "hub.example"'))


def test_a_file_that_is_no_toml_names_the_line(changed):
    with pytest.raises(SutureError, match="line 2"):
        load_site(changed('url = "http', "url = http"))


def test_a_missing_file(tmp_path):
    with pytest.raises(SutureError) as caught:
        load_site(tmp_path / "none.toml")
    assert caught.value.code == "site.missing"
    assert "suture site check /etc/suture/site.toml" in caught.value.hint


def test_a_broker_url_is_never_shown(changed):
    config = load_site(changed("[limits]", '[broker]\nurl = "redis://:hunter2@broker:6379/0"\n[limits]'))
    assert config.broker.url.endswith("broker:6379/0")
    assert "hunter2" not in repr(config)


def test_token(site):
    assert read_token(site) == "suture_t_1"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_token_others_can_read_is_refused(site, mode):
    site.hub.token_file.chmod(mode)
    with pytest.raises(SutureError) as caught:
        read_token(site)
    assert caught.value.code == "site.token_exposed"
    assert "chmod 600" in caught.value.hint
    assert "suture_t_1" not in str(caught.value)


def test_a_token_that_is_missing_or_empty(site):
    site.hub.token_file.write_text("\n")
    with pytest.raises(SutureError, match="empty"):
        read_token(site)
    site.hub.token_file.unlink()
    with pytest.raises(SutureError) as caught:
        read_token(site)
    assert caught.value.code == "site.token_missing"


def test_state_is_for_this_user_alone(site):
    site.state.chmod(0o755)
    prepare_state(site)
    folders = [site.state, *(path for path in site.state.rglob("*") if path.is_dir())]
    assert len(folders) == 7
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}
