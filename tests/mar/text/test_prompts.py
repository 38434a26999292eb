"""Prompts are a list, lines of a file or of GenEval's, or captions; what is not heeded is said."""

import re
from pathlib import Path

import pytest

from mar.text.prompts import Prompt, check_prompts, find_prompts, read_prompts
from mar.text.words import Words


GENEVAL = '{"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "a red  dog"}'


def test_prompts_are_a_list_a_file_or_held_out_captions(tmp_path: Path) -> None:
    assert find_prompts(["a  cat ", "b"], ["c"], base=tmp_path) == [Prompt("a cat"), Prompt("b")]
    assert find_prompts(None, ["c"], base=tmp_path) == [Prompt("c")]
    (tmp_path / "prompts.txt").write_text("\ufeffa cat\n\n a dog\n")
    found = find_prompts("prompts.txt", ["c"], base=tmp_path)
    place = f"{tmp_path / 'prompts.txt'}, line "
    assert found == [Prompt("a cat", place=f"{place}1"), Prompt("a dog", place=f"{place}3")]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"sample\.prompts: .*empty\.txt has no prompts"):
        find_prompts("empty.txt", [], base=tmp_path)
    named_once = r"^sample\.prompts: \S*gone\.txt cannot be read: No such file or directory$"
    with pytest.raises(ValueError, match=named_once):
        find_prompts("gone.txt", [], base=tmp_path)
    (tmp_path / "latin.txt").write_bytes(b"a cat\r\nun \xe9l\xe9phant\n")
    with pytest.raises(ValueError, match=r"latin\.txt, line 2: .* byte 0xe9 .*, expected UTF-8"):
        find_prompts("latin.txt", [], base=tmp_path)


def test_what_of_a_prompt_is_not_heeded_is_said() -> None:
    words = Words(["a", "cat"])
    assert check_prompts([Prompt("a cat")], words, 2) == []
    assert check_prompts([Prompt("a cat"), Prompt("a big cat a")], words, 2) == [
        "1 words of the prompts are not known and left out: big",
        "1 of 2 prompts have more than 2 tokens (generator.condition_tokens) and are cut, "
        "as 'a big cat a'",
    ]
    with pytest.raises(ValueError, match="nothing is left of the prompt 'big dog', as none of big"):
        check_prompts([Prompt("big dog")], words, 2)
    with pytest.raises(ValueError, match=r"^nothing is left of the prompt ''$"):
        check_prompts([Prompt("")], words, 2)
    with pytest.raises(ValueError, match=r"^a\.txt, line 7: nothing is left of the prompt 'dog'"):
        check_prompts([Prompt("dog", place="a.txt, line 7")], words, 2)


def test_lines_of_genevals_file_keep_what_they_say(tmp_path: Path) -> None:
    for name in ("prompts.jsonl", "PROMPTS.JSONL"):
        path = tmp_path / name
        path.write_text(f"{GENEVAL}\n\n")
        assert read_prompts(path) == [Prompt("a red dog", GENEVAL, place=f"{path}, line 1")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a red dog", "no JSON (Expecting value: line 1 column 1 (char 0)): a red dog"),
        (GENEVAL.replace("1", "true"), "count must be a whole number above 0, got True, in {"),
    ],
)
def test_what_is_no_line_of_geneval_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{GENEVAL}\n{line}\n")
    with pytest.raises(ValueError, match=re.escape(f"prompts.jsonl, line 2: {said}")) as refused:
        read_prompts(path)
    assert '; expected {"tag": ...' in str(refused.value)
