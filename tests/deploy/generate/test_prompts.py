"""What notes begin with: the same for a number and a seed, and a file that says too little is refused in words."""

from pathlib import Path

import pytest

from grandrounds.common.errors import StudyError
from grandrounds.deploy.generate.prompts import Prompts

TOML = 'prompt = "{type}: a {age} patient, {sex}."\n'


def written(folder: Path, text: str, name: str = "prompts.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_prompt_follows_from_its_number_and_the_seed_alone(tmp_path: Path) -> None:
    path = written(tmp_path, TOML + "values = { type = ['ED', 'CT'], age = [4, 40], sex = ['female', 'male'] }")
    first, again = ([Prompts.read(path).prompt(number, seed=1) for number in range(40)] for _ in range(2))
    assert first == again and first[::-1] != first
    assert first != [Prompts.read(path).prompt(number, seed=2) for number in range(40)]
    assert {prompt.text for prompt in first} == {
        f"{kind}: a {age} patient, {sex}." for kind in ("ED", "CT") for age in (4, 40) for sex in ("female", "male")
    }
    assert all(f"a {prompt.controls['age']} patient" in prompt.text for prompt in first)


def test_what_belongs_together_is_drawn_together(tmp_path: Path) -> None:
    together = 'together = [{ type = "birth", age = "newborn" }, { type = "hip", age = "80 year-old" }]\n'
    prompts = Prompts.read(written(tmp_path, together + TOML + 'values = { sex = ["female"] }'))
    texts = {prompts.prompt(number, seed=0).text for number in range(40)}
    assert texts == {"birth: a newborn patient, female.", "hip: a 80 year-old patient, female."}


def test_lines_are_taken_in_turn_and_keep_what_stands_beside_them(tmp_path: Path) -> None:
    lines = '{"prompt": "{Chest} pain ", "type": "ED"}\n\n{"prompt": "Fall", "type": "Ward"}\n'
    prompts = Prompts.read(written(tmp_path, lines, "prompts.jsonl"))
    taken = [prompts.prompt(number, seed=9) for number in range(3)]
    assert [prompt.text for prompt in taken] == ["{Chest} pain", "Fall", "{Chest} pain"]
    assert taken[1].controls == {"type": "Ward"}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", TOML, "its prompt has {age}"),
        ("a.toml", 'prompt = "secret"', "no name in braces"),
        ("a.toml", 'prompt = "{}"', "braces are around names"),
        ("a.toml", 'values = { age = ["secret"] }', "prompt: it is missing"),
        ("a.toml", TOML + "values = { age = [] }", "values.age = []: needs 1 or more"),
        ("a.toml", 'prompt = "{a}"\ntogether = [{ a = 1 }, { a = 1, b = "secret" }]', "have different names"),
        ("a.toml", TOML + 'sections = [{ heading = "", tokens = 0 }]', "sections"),
        ("a.toml", TOML + 'sections = [{ heading = "# Plan" }]', "sections"),
        ("a.jsonl", "", "it has no prompt"),
        ("a.jsonl", '{"text": "secret"}', "line 1 is no prompt"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ["secret"]}', "line 2 is no prompt"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "secret", "age": 1}', "line 2 has other names"),
        ("a.jsonl", "secret", "line 1 is no prompt"),
    ],
)
def test_a_file_that_gives_no_prompts_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(StudyError) as refused:
        Prompts.read(written(tmp_path, text, name))
    assert said in refused.value.what
    assert "secret" not in refused.value.diagnostics()


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="No such file"):
        Prompts.read(tmp_path / "none.jsonl")
