"""Configuration: every key has its place, a wrong one is told the nearest, and what is stored reads back the same."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fedquilt.config import Config, load, parse
from fedquilt.errors import ConfigError

SECTIONS = {
    name: field.annotation for name, field in Config.model_fields.items() if isinstance(field.default, BaseModel)
}

positive = st.floats(1e-6, 1e6) | st.just(float("inf"))
words = st.text(max_size=20)
trees = st.fixed_dictionaries(
    {},
    optional={
        "name": words,
        "seed": st.integers(-(2**62), 2**62),
        "data": st.fixed_dictionaries(
            {}, optional={"path": words, "mean_clicks": st.floats(5, 1e6), "columns": st.dictionaries(words, words)}
        ),
        "patch": st.fixed_dictionaries({}, optional={"parts": st.lists(words, max_size=3)}),
        "split": st.fixed_dictionaries({}, optional={"cloud_share": st.floats(0, 1)}),
        "meta": st.fixed_dictionaries({}, optional={"second_order": st.booleans(), "inner_learning_rate": positive}),
        "federation": st.fixed_dictionaries(
            {},
            optional={
                "clipping_norm": positive,
                "rounds": st.integers(0, 10**9),
                "aggregator_options": st.dictionaries(words, st.integers(-9, 9) | st.booleans() | words),
            },
        ),
        "evaluation": st.fixed_dictionaries({}, optional={"ks": st.lists(st.integers(1, 100), min_size=1, max_size=4)}),
    },
)


# --- round trip ---


@given(trees)
def test_what_a_run_stores_reads_back_as_the_same_configuration(tree):
    config = parse(tree)
    again = parse(tomllib.loads(config.to_toml()))
    assert again == config
    assert again.hash() == config.hash()


@pytest.mark.parametrize(
    ("parts", "inner"),
    [
        (["bottleneck", "item-bias"], ("bottleneck",)),
        (["readout", "bottleneck"], ("bottleneck", "readout")),
        (["item-bias"], ("item-bias",)),
        ([], ()),
    ],
)
def test_inner_parts_that_nobody_set_follow_the_patch(parts, inner):
    assert parse({"patch": {"parts": parts}, "meta": {"inner_steps": 2}}).meta.inner_parts == inner


def test_inner_parts_that_were_set_stay_as_they_are():
    given = {"patch": {"parts": ["item-bias"]}, "meta": {"inner_parts": ["readout"]}}
    assert parse(given).meta.inner_parts == ("readout",)


@given(trees, trees)
def test_equal_configurations_and_only_those_have_one_hash(left, right):
    assert (parse(left).hash() == parse(right).hash()) == (parse(left) == parse(right))


def test_the_defaults_are_a_configuration():
    assert parse({}) == load() == Config()
    assert SECTIONS.keys() >= {"data", "split", "graph", "cloud", "patch", "meta", "federation", "evaluation"}


# --- files and overrides ---


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('name = "mine"\n[federation]\nrounds = 7\ncohort_size = 70\n')
    config = load(path, ["federation.rounds=9", "cloud.use_ids=false"])
    assert (config.name, config.federation.rounds, config.federation.cohort_size) == ("mine", 9, 70)
    assert config.cloud.use_ids is False


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("data.dataset=ml-100k", "data", "dataset", "ml-100k"),
        ("data.dataset = 'ml-100k'", "data", "dataset", "ml-100k"),
        ("data.path=/a/b=c.csv", "data", "path", "/a/b=c.csv"),
        ("federation.clipping_norm=inf", "federation", "clipping_norm", float("inf")),
        ("cloud.learning_rate=1e-3", "cloud", "learning_rate", 1e-3),
        ('patch.parts=["readout"]', "patch", "parts", ("readout",)),
        ("data.columns.user=uid", "data", "columns", {"user": "uid"}),
        ("meta.second_order=false", "meta", "second_order", False),
        ("data.path=", "data", "path", ""),
    ],
)
def test_an_override_is_toml_and_a_bare_word_is_a_string(override, section, key, value):
    assert getattr(getattr(load(overrides=[override]), section), key) == value


@pytest.mark.parametrize("override", ["federation.rounds", "=3", " =3", ""])
def test_an_override_without_a_key_or_a_value_says_what_one_looks_like(override):
    with pytest.raises(ConfigError, match=r"expected key=value, for example federation\.rounds=20"):
        load(overrides=[override])


def test_an_override_below_a_value_says_so():
    with pytest.raises(ConfigError, match="'seed' is a value, not a section"):
        load(overrides=["seed=1", "seed.more=2"])


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"rounds = [", "not valid TOML"), (b'name = "\xff\xfe"', "not valid TOML: .*utf-8")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, words):
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_is_none_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=r"configuration .*: (No such file|Is a directory)"):
        load(tmp_path / name)


# --- what is refused ---


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.round=3", "unknown key 'federation.round': did you mean 'federation.rounds'?"),
        ("federaton.rounds=3", "unknown key 'federaton': did you mean 'federation'?"),
        ("sede=3", "unknown key 'sede': did you mean 'seed'?"),
        ("evaluation.zzzz=3", "unknown key 'evaluation.zzzz': known here: ks, "),
    ],
)
def test_an_unknown_key_is_told_the_nearest_or_all(override, words):
    with pytest.raises(ConfigError) as caught:
        load(overrides=[override])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.rounds=-1", "federation.rounds: .*greater than or equal to 0; got -1"),
        ("split.cloud_share=1.5", "split.cloud_share: .*less than or equal to 1; got 1.5"),
        ("federation.clipping_norm=nan", "federation.clipping_norm: "),
        ("split.protocol=loo", "split.protocol: .*'loo-full'.*got 'loo'"),
        ("federation.rounds=many", "federation.rounds: .*valid integer.*got 'many'"),
        ("federation.rounds=2.5", "federation.rounds: .*valid integer"),
        ("cloud=3", "cloud: "),
        ("patch.parts=[1]", "patch.parts.0: "),
    ],
)
def test_a_value_out_of_range_is_told_with_its_place(override, words):
    with pytest.raises(ConfigError, match=words):
        load(overrides=[override])


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        load(overrides=["sede=1", "federation.rounds=-1"])
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("section", [None, *SECTIONS])
def test_nothing_can_be_changed_afterwards(section):
    config = Config()
    target = getattr(config, section) if section else config
    name = next(iter(type(target).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(target, name, getattr(target, name))


@pytest.mark.parametrize(("section", "model"), SECTIONS.items(), ids=SECTIONS.keys())
def test_keys_are_snake_case(section, model):
    assert all(name.islower() and name.isidentifier() for name in (section, *model.model_fields))
