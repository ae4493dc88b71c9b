"""A signed statement is checked from its file alone: what was signed, by whom, and that nothing else is shown."""

from __future__ import annotations

import html
import json
import re

import pytest
from tiny_ledger import write_run
from typer.testing import CliRunner

from cli.main import app, main
from cli.statement_check import check
from cli.statement_page import page
from fedquilt.errors import PrivacyError
from fedquilt.privacy.signing import public_key
from fedquilt.privacy.statement import sign, statement

KEY = b"\1" * 32
PUBLIC = public_key(KEY)


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    path = tmp_path_factory.mktemp("stated") / "privacy.sqlite"
    write_run(path, rounds=3).close()
    return statement(path)


@pytest.fixture(scope="module")
def shown(facts):
    return page(facts, sign(facts, KEY))


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """JSON of the verb."""
    folder = tmp_path_factory.mktemp("printed")
    write_run(folder / "privacy.sqlite", rounds=3).close()
    (folder / "key").write_text(KEY.hex())
    return verb("statement", folder / "privacy.sqlite", "--key", folder / "key", "--json").stdout


def verb(*arguments):
    return CliRunner().invoke(app, ["privacy", *map(str, arguments)])


def told(text, key=PUBLIC):
    return " ".join(check(text, key))


def with_facts(shown, facts):
    """The page with other facts inside, as a forger would put them."""
    start, end = shown.index('<pre id="facts">') + 16, shown.index("</pre>")
    return shown[:start] + html.escape(json.dumps(facts)) + shown[end:]


def edited(printed, **changes):
    return json.dumps({**json.loads(printed), **changes})


# --- the page ---


def test_an_untouched_page_holds(shown):
    assert check(shown, PUBLIC) == []


def test_an_edited_number_in_the_visible_table_is_found(shown, facts):
    number = f"{facts['epsilon']:.3f}"
    assert number in shown
    assert "shows" in told(shown.replace(number, "0.100", 1))


def test_what_differs_is_told_beside_what_the_facts_give(shown, facts):
    number = f"{facts['epsilon']:.3f} at"
    (_, difference) = check(shown.replace(number, "0.100 at", 1), PUBLIC)
    assert "0.100 at" in difference
    assert number in difference


def test_an_edited_sentence_is_found(shown):
    assert "does not show what its facts give" in told(shown.replace("400 people", "4,000 people"))


def test_an_edited_chart_is_found(shown):
    assert "does not show" in told(re.sub(r'points="[\d.]+', 'points="0.0', shown, count=1))


def test_a_script_that_rewrites_the_page_is_found(shown):
    assert "does not show" in told(shown.replace("</html>", "<script>document.title='x'</script></html>"))


def test_facts_that_were_edited_are_found(shown, facts):
    assert "the facts were changed" in told(with_facts(shown, {**facts, "epsilon": 0.1}))


def test_a_page_made_anew_from_edited_facts_is_found(facts):
    assert "the facts were changed" in told(page({**facts, "epsilon": 0.1}, sign(facts, KEY)))


def test_a_digest_that_was_edited_along_with_the_facts_is_found(facts):
    other = {**facts, "epsilon": 0.1}
    forged = {**sign(facts, KEY), "digest": sign(other, KEY)["digest"]}
    assert "signature does not hold" in told(page(other, forged))


def test_another_key_is_found(facts):
    assert "another key" in told(page(facts, sign(facts, b"\2" * 32)))


def test_another_signers_signature_under_the_name_of_the_key_is_found(facts):
    forged = {**sign(facts, b"\2" * 32), "public_key": PUBLIC}
    assert "signature does not hold" in told(page(facts, forged))


def test_a_page_that_nobody_signed_is_found(facts):
    assert "not signed" in told(page(facts, None))


def test_words_beside_a_signature_are_found(facts):
    assert "is none" in told(page(facts, {**sign(facts, KEY), "note": "approved by everyone"}))


def test_a_signed_page_that_owns_up_to_findings_is_no_pass(facts):
    failed = {**facts, "holds": False, "findings": ["chain: entry 2 was changed"]}
    assert check(page(failed, sign(failed, KEY)), PUBLIC) == ["it says of itself that the records do not hold"]


def test_second_facts_in_a_page_are_refused(shown):
    with pytest.raises(PrivacyError, match="facts 2 times"):
        check(shown.replace("</html>", '<pre id="facts">{}</pre></html>'), PUBLIC)


def test_signed_facts_of_another_shape_are_told_and_do_not_crash(shown):
    assert "nothing can be made from its facts" in told(with_facts(shown, {"epsilon": 0.1}))


# --- JSON ---


def test_an_untouched_json_holds(printed):
    assert check(printed, PUBLIC) == []


@pytest.mark.parametrize("change", [{"epsilon": 0.1}, {"further": "a promise"}])
def test_an_edited_fact_in_json_is_found(printed, change):
    assert "the facts were changed" in told(edited(printed, **change))


def test_edited_words_in_json_are_found(printed):
    assert "does not show" in told(edited(printed, in_words=["Nothing can happen."]))


def test_a_value_that_comes_twice_in_json_is_refused(printed):
    with pytest.raises(PrivacyError, match="comes twice"):
        check(printed.replace("{", '{"epsilon": 0.1, ', 1), PUBLIC)


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '{"a": 1e999}', "<html></html>"])
def test_what_is_no_statement_is_refused_in_words(text):
    with pytest.raises(PrivacyError, match="not a statement"):
        check(text, PUBLIC)


# --- the verb ---


def test_the_verb_passes_a_page_and_leaves_with_one_for_an_edited_one(shown, tmp_path):
    (tmp_path / "good.html").write_text(shown)
    (tmp_path / "bad.html").write_text(shown.replace("400 people", "4,000 people"))
    good, bad = (
        verb("statement", "--check", tmp_path / name, "--public-key", PUBLIC) for name in ("good.html", "bad.html")
    )
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "4,000 people" in bad.stdout


def test_a_page_that_the_verb_wrote_passes_the_verb(tmp_path):
    write_run(tmp_path / "privacy.sqlite", rounds=2).close()
    public = json.loads(verb("keygen", tmp_path / "key", "--json").stdout)["public_key"]
    made = verb("statement", tmp_path / "privacy.sqlite", "--html", tmp_path / "page.html", "--key", tmp_path / "key")
    assert made.exit_code == 0
    assert verb("statement", "--check", tmp_path / "page.html", "--public-key", public).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("--check", "page.html"), "needs --public-key"),
        (("run", "--check", "page.html", "--public-key", PUBLIC), "makes none"),
        (("run", "--public-key", PUBLIC), "goes with --check"),
        ((), "name a run's folder"),
        (("--check", "nowhere.html", "--public-key", PUBLIC), "cannot read the statement"),
    ],
)
def test_the_verb_says_what_is_missing(arguments, wrong, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["privacy", "statement", *arguments])
    assert stopped.value.code == 2
    assert wrong in capsys.readouterr().err
