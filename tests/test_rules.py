"""Rule files by path and by name, and what becomes of several."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from pipeline.errors import RuleError
from pipeline.regions import Turn
from pipeline.rules import (
    RuleFile,
    RuleSet,
    Talk,
    bundled_rules,
    compose,
    find_rule_files,
    load_rules,
    parse_rule_file,
    read_rule_file,
)
from pipeline.rules.example import check_coverage, check_examples
from pipeline.spans import Span

BUNDLED = sorted(bundled_rules().rglob("*.yaml"))
NAMES = {
    *("default", "last_round", "all", "ignore_empty_think", "ignore_think_prefix", "react"),
    *("last_round_with_ignore_empty_think", "hermes", "qwen", "agentflan", "alpha_umi"),
}


def read(text: str, *, place: str = "f.yaml") -> RuleFile:
    return parse_rule_file(f"version: 1\n{text}", place=place)


def spans(rules: RuleSet, text: str) -> list[tuple[int, int]]:
    span = [Span(0, len(text))]
    turn = Turn(0, "assistant", span, span, -1, "prompt", False)
    return [(start, end) for _, start, end in rules.claims(Talk(text, [turn], {}))]


def test_each_system_of_ms_swift_has_a_rule_of_its_name() -> None:
    assert {path.stem for path in bundled_rules().glob("*.yaml")} == NAMES


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_bundled_rule_does_what_its_examples_mark(path: Path) -> None:
    file = read_rule_file(path)
    assert file.name == path.stem
    assert file.summary
    assert check_coverage(file) == ""
    assert check_examples(file) == []


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_examples_of_a_bundled_rule_fail_without_its_rules(path: Path) -> None:
    """So they are no examples that cannot fail."""
    file = read_rule_file(path)
    if file.name == "default":
        return  # whose fact is that nothing changes
    assert check_examples(RuleFile(file.name, "", "", (), file.examples, ""))


def test_a_name_is_a_path_first_and_a_bundled_rule_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_rule_files("hermes") == [bundled_rules() / "hermes.yaml"]
    assert find_rule_files("hermes.yaml") == [bundled_rules() / "hermes.yaml"]
    monkeypatch.chdir(tmp_path)
    Path("hermes").write_text("version: 1")
    assert find_rule_files("hermes") == [Path("hermes")]
    assert find_rule_files(tmp_path / "hermes") == [tmp_path / "hermes"]


def test_names_joined_by_a_plus_are_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundled_rules()
    expected = [folder / "last_round.yaml", folder / "hermes.yaml"]
    assert find_rule_files("last_round+hermes") == expected
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("version: 1")
    assert find_rule_files("own.yaml+hermes") == [Path("own.yaml"), folder / "hermes.yaml"]
    Path("own.yaml+hermes").write_text("version: 1")
    assert find_rule_files("own.yaml+hermes") == [Path("own.yaml+hermes")]


def test_more_names_than_a_path_may_have_characters_are_found() -> None:
    names = sorted(NAMES) * 4
    assert len("+".join(names)) > 255
    assert [path.stem for path in find_rule_files("+".join(names))] == names


def test_the_profile_has_its_own_form_of_some_rules() -> None:
    (own,) = find_rule_files("ignore_empty_think", profile="ms-swift")
    assert own == bundled_rules() / "ms-swift" / "ignore_empty_think.yaml"
    assert find_rule_files("hermes", profile="ms-swift") == find_rule_files("hermes")
    plain, swift = (
        load_rules(["ignore_empty_think"], profile=profile) for profile in ("", "ms-swift")
    )
    assert spans(plain, "a<think></think>b") == [(1, 16)]
    assert spans(swift, "a<think></think>b") == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("no_such", "no_such: no such rule file; give a path or bundled rules (agentflan, all, "),
        ("hermes+no_such", "no_such in hermes+no_such: no such rule file; "),
        ("hermes+", "nothing in hermes+: no such rule file; "),
        ("", "'': no such rule file; "),
        ("no/such.yaml", "no/such.yaml: no such rule file; "),
        ("ms-swift/ignore_empty_think", "ms-swift/ignore_empty_think: no such rule file; "),
        ("x" * 300, "xxx"),
    ],
)
def test_a_name_of_nothing_is_an_error_that_lists_the_bundled_rules(
    word: str, message: str
) -> None:
    with pytest.raises(RuleError) as caught:
        find_rule_files(word)
    assert str(caught.value).startswith(message)


def test_a_file_that_cannot_be_read_is_a_rule_error(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(RuleError, match=r"bad\.yaml: cannot be read: .*; give a UTF-8 YAML file"):
        load_rules([bad])


@pytest.mark.parametrize(
    "text", ["version: 1\nname: f\nrules: [{weight: 0}]\n", '{"Action:": [2.0, 2.0]}']
)
def test_a_byte_order_mark_is_no_part_of_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "f.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_rule_file(path).entries == parse_rule_file(text, place="f.yaml", name="f").entries


def test_an_example_that_is_not_claimed_as_marked_keeps_a_file_from_loading(
    tmp_path: Path,
) -> None:
    path = tmp_path / "f.yaml"
    path.write_text("version: 1\nname: f\nrules: [{pattern: b, weight: 0}]\nexamples: [ab]\n")
    with pytest.raises(RuleError, match=r"^f\.yaml:4:12: examples\[0\]: noisy: .*'b'.*; mend"):
        load_rules([path])


FIRST = "name: a\nrules: [{pattern: 'x+', weight: 0.5}, {pattern: 'y', weight: 2, name: y}]\n"
SECOND = "name: b\nbase: last_turn\nrules: [{pattern: 'x', weight: 3}]\n"


def test_files_compose_in_one_order_whatever_the_command_line_says() -> None:
    a, b = read(FIRST), read(SECOND)
    assert compose([a, b]) == compose([b, a])
    assert [rule.name for rule in compose([b, a]).rules] == ["a[0]", "a.y", "b.base", "b"]
    assert compose([b, a]).base == "last_turn"
    assert [(c.rule, c.start, c.end) for c in compose([b, a]).claims(_talk("xxy"))] == [
        *((0, 0, 2), (1, 2, 3)),
        *((3, 0, 1), (3, 1, 2)),
    ]


def _talk(text: str) -> Talk:
    span = [Span(0, len(text))]
    return Talk(text, [Turn(0, "assistant", span, span, -1, "prompt", False)], {})


def test_no_files_are_the_base_and_no_rules() -> None:
    assert compose([]) == RuleSet((), "assistant", (), ())


def test_the_base_of_one_file_is_the_base_of_all() -> None:
    assert compose([read(FIRST), read(SECOND)]).base == "last_turn"
    user = read("name: u\nrules: [{weight: 0, where: {role: user}}]\n")
    everyone = read("name: all\nbase: all\n")
    assert compose([user, everyone]).base == "all"


def test_what_composes_to_no_one_thing_is_an_error_at_the_place_that_says_it() -> None:
    first = read("name: a\nbase: all\n", place="a.yaml")
    for second, message in [
        (
            read("name: b\nbase: last_turn\n", place="b.yaml"),
            "b.yaml:3:7: base: is last_turn here, and all in a.yaml:3:7; give one of the two",
        ),
        (
            read("name: a\nbase: all\n", place="c.yaml"),
            "c.yaml:2:7: name: a is given twice; give each rule file once",
        ),
    ]:
        with pytest.raises(RuleError) as caught:
            compose([first, second])
        assert str(caught.value) == message


def test_two_rules_of_one_name_in_two_files_are_an_error() -> None:
    a = read("name: a\nrules: [{weight: 0, name: b}, {weight: 1}]\n", place="a.yaml")
    b = read("name: a.b\nrules: [{weight: 0}]\n", place="b.yaml")
    with pytest.raises(RuleError) as caught:
        compose([a, b])
    message = "b.yaml:3:9: rules[0]: another file has a rule a.b too; rename one"
    assert str(caught.value) == message


def test_a_rule_file_given_twice_is_refused() -> None:
    with pytest.raises(RuleError, match="hermes is given twice; give each rule file once"):
        load_rules(["hermes+last_round", "hermes.yaml"])


def test_a_chain_claims_what_its_parts_claim() -> None:
    text = "<think></think><tool_call>f</tool_call>"
    assert spans(load_rules(["hermes+ignore_empty_think"]), text) == [(15, 39), (0, 15)]


def test_a_rule_set_survives_pickling() -> None:
    rules = load_rules(["last_round+agentflan", "ignore_empty_think"])
    again = pickle.loads(pickle.dumps(rules))
    assert again.rules == rules.rules
    assert spans(again, "Action: x") == spans(rules, "Action: x") == [(7, 9)]


def test_the_digest_is_that_of_the_text() -> None:
    assert read(FIRST).digest == read(FIRST, place="elsewhere").digest != read(SECOND).digest
