"""Prompts are a list, lines of a file or of GenEval's, or captions; what is not heeded is said."""

from pathlib import Path

import pytest

from mar.text.prompts import Prompt, check_prompts, find_prompts, read_prompts
from mar.text.words import Words


GENEVAL = '{"tag": "colors", "include": [{"class": "dog", "count": 1}], "prompt": "a red  dog"}'


def test_prompts_are_a_list_a_file_or_held_out_captions(tmp_path: Path) -> None:
    assert find_prompts(["a  cat ", "b"], ["c"], base=tmp_path) == [Prompt("a cat"), Prompt("b")]
    assert find_prompts(None, ["c"], base=tmp_path) == [Prompt("c")]
    (tmp_path / "prompts.txt").write_text("\ufeffa cat\n\n a dog\n")
    assert find_prompts("prompts.txt", ["c"], base=tmp_path) == [Prompt("a cat"), Prompt("a dog")]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"sample\.prompts: .*empty\.txt has no prompts"):
        find_prompts("empty.txt", [], base=tmp_path)
    with pytest.raises(ValueError, match=r"sample\.prompts: .*gone\.txt cannot be read"):
        find_prompts("gone.txt", [], base=tmp_path)


def test_what_of_a_prompt_is_not_heeded_is_said() -> None:
    words = Words(["a", "cat"])
    assert check_prompts(["a cat"], words, 2) == []
    assert check_prompts(["a cat", "a big cat a"], words, 2) == [
        "1 words of the prompts are not known and left out: big",
        "1 of 2 prompts have more than 2 tokens (generator.condition_tokens) and are cut, "
        "as 'a big cat a'",
    ]
    with pytest.raises(ValueError, match="nothing is left of the prompt 'big dog', as none of big"):
        check_prompts(["big dog"], words, 2)
    with pytest.raises(ValueError, match=r"nothing is left of the prompt ''$"):
        check_prompts([""], words, 2)


def test_lines_of_genevals_file_keep_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{GENEVAL}\n\n")
    assert read_prompts(path) == [Prompt("a red dog", GENEVAL)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a red dog", r"line 2: no JSON \(Expecting value.*expected \{\"tag\": "),
        ('["a red dog"]', r'line 2: got \["a red dog"\], expected'),
        (GENEVAL.replace("tag", "task"), "line 2: got .*task.*, expected"),
        (GENEVAL.replace("class", "name"), "line 2: got .*name.*, expected"),
        (GENEVAL.replace("1", '"1"'), "line 2: got .*, expected"),
    ],
)
def test_what_is_no_line_of_geneval_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{GENEVAL}\n{line}\n")
    with pytest.raises(ValueError, match=f"prompts.jsonl, {said}"):
        read_prompts(path)
