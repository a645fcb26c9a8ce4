from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from grandrounds.common.data.preparation import Preparation
from grandrounds.common.data.record import Chat, Content, PromptCompletion, Record, SetAsideContent, Text, Turn
from grandrounds.common.data.records import named_rows
from grandrounds.common.data.tokenisation import MAX_EVALUATED_TOKENS, Tokenisation
from grandrounds.common.data.windows import Layout, windows_of
from grandrounds.common.errors import DataError, ModelError
from grandrounds.common.model.example import NO_LOSS, Example

MARKING_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
REFUSING_TEMPLATE = "{{ raise_exception('no role ' + messages[0]['content']) }}"
QUOTE = "Zebedee has gout"


def byte_tokenizer(**options: object) -> PreTrainedTokenizerFast:
    """One token a byte, and an end-of-text token: what each test expects can be read off the text."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate([*symbols, "<end>", "<pad>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", **options)  # noqa: S106


TOKENIZER = byte_tokenizer()


def record(content: Content) -> Record:
    return Record(patient_id="p", position="line 1", content=content)


def example(content: Content, *, max_tokens: int = 32, tokenizer: PreTrainedTokenizerFast = TOKENIZER) -> Example:
    (made,) = examples(Tokenisation(tokenizer), [record(content)], max_tokens)
    return made


def examples(tokenisation: Tokenisation, records: list[Record], max_tokens: int = 8) -> list[Example]:
    """The first window of each record; raises why one cannot be laid out."""
    made = []
    for layout in tokenisation.layouts(records):
        if isinstance(layout, DataError):
            raise layout
        made.append(windows_of(layout, max_tokens=max_tokens, overlap=0)[0].example(max_tokens))
    return made


def read(made: Example) -> str:
    return TOKENIZER.decode(np.trim_zeros(made.token_ids, "b"))  # "!" is token 0, and ends no text here


def learnt(made: Example) -> str:
    return TOKENIZER.decode(made.labels[made.labels != NO_LOSS])


CHAT = Chat(messages=(Turn(role="user", content="Pain?"), Turn(role="assistant", content="None.")))


def test_every_token_of_a_text_is_learnt_and_its_end() -> None:
    made = example(Text(text="No pain."))
    assert read(made) == learnt(made) == "No pain.<end>"


def test_only_the_completion_is_learnt() -> None:
    made = example(PromptCompletion(prompt="Pain?", completion=" None."))
    assert read(made) == "Pain? None.<end>"
    assert learnt(made) == " None.<end>"


def test_only_the_assistant_s_turns_are_learnt_where_the_template_marks_them() -> None:
    tokenizer = byte_tokenizer(chat_template=MARKING_TEMPLATE)
    made = example(CHAT, tokenizer=tokenizer)
    assert read(made) == "Pain?None."
    assert learnt(made) == "None."


def test_a_whole_conversation_is_learnt_where_the_template_marks_nothing_and_it_is_said() -> None:
    tokenizer = byte_tokenizer(chat_template=PLAIN_TEMPLATE)
    assert learnt(example(CHAT, tokenizer=tokenizer)) == "Pain?None."


def test_a_model_without_a_chat_template_is_refused_for_conversations() -> None:
    with pytest.raises(DataError, match="line 1: the model has no chat template"):
        example(CHAT)


def test_a_refusing_chat_template_is_reported_by_line_and_never_quoted() -> None:
    with pytest.raises(DataError) as refusal:
        example(
            Chat(messages=(Turn(role="x", content=QUOTE),)),
            tokenizer=byte_tokenizer(chat_template=REFUSING_TEMPLATE),
        )
    assert "line 1" in refusal.value.diagnostics()
    assert QUOTE not in refusal.value.diagnostics()
    assert refusal.value.__context__ is None


def test_a_cut_text_has_no_end_and_is_not_padded() -> None:
    made = example(Text(text="No pain at all."), max_tokens=8)
    assert read(made) == learnt(made) == "No pain "


contents = st.one_of(
    st.builds(Text, text=st.text(st.characters(codec="utf-8"), min_size=1)),
    st.builds(
        PromptCompletion,
        prompt=st.text(st.characters(codec="utf-8"), min_size=1),
        completion=st.text(st.characters(codec="utf-8"), min_size=1),
    ),
)


@pytest.mark.parametrize(
    "content", [Text(text="No pain at all."), PromptCompletion(prompt="Any pain?", completion=" None.")]
)
def test_a_held_out_record_is_whole_however_little_is_trained_on(content: Content) -> None:
    whole = example(content, max_tokens=400)
    length = int(np.flatnonzero(whole.labels != NO_LOSS)[-1]) + 1
    held_out = Tokenisation(TOKENIZER).evaluation_set([record(content)], positions=400)
    (found,) = held_out.examples
    assert (held_out.cut, held_out.max_tokens) == (0, 400) and length > 8
    assert np.array_equal(found.token_ids, whole.token_ids[:length])
    assert np.array_equal(found.labels, whole.labels[:length])


def test_held_out_records_that_the_model_cannot_read_to_their_end_are_cut_there_and_counted() -> None:
    texts = ["a" * length for length in (3, 9, 10, 11)]  # a token each, and an end of text
    records = [record(Text(text=text)) for text in texts]
    held_out = Tokenisation(TOKENIZER).evaluation_set(records, positions=10)
    assert [len(one.token_ids) for one in held_out.examples] == [4, 10, 10, 10]
    assert (held_out.cut, held_out.max_tokens) == (2, 10)
    unbounded = Tokenisation(TOKENIZER).evaluation_set(records, positions=None)
    assert (unbounded.cut, unbounded.max_tokens) == (0, MAX_EVALUATED_TOKENS)


@settings(deadline=None)
@given(content=contents, max_tokens=st.integers(1, 40))
def test_every_example_has_the_same_shape_and_labels_only_its_own_tokens(content: Content, max_tokens: int) -> None:
    made = example(content, max_tokens=max_tokens)
    for array in (made.token_ids, made.labels):
        assert array.shape == (max_tokens,)
        assert array.dtype == np.int32
    has_label = made.labels != NO_LOSS
    assert np.array_equal(made.labels[has_label], made.token_ids[has_label])
    last = int(np.flatnonzero(has_label).max(initial=-1))
    assert not made.token_ids[last + 1 :].any(), "padding is on the right"


SOME_REFUSED = (
    "{% for message in messages %}{% if message['role'] == 'nobody' %}{{ raise_exception(message['content']) }}"
    "{% endif %}{{ message['content'] }}{% endfor %}"
)


def chat_of(role: str) -> Record:
    return record(Chat(messages=(Turn(role=role, content=QUOTE),)))


def test_a_record_that_the_chat_template_refuses_is_refused_alone() -> None:
    tokenisation = Tokenisation(byte_tokenizer(chat_template=SOME_REFUSED))
    usual, refused, other = tokenisation.layouts([chat_of("user"), chat_of("nobody"), chat_of("user")])
    assert isinstance(usual, Layout) and isinstance(other, Layout) and isinstance(refused, DataError)
    assert refused.what == "line 1: the model's chat template refuses these messages"
    assert QUOTE not in refused.diagnostics()


class Raises(PreTrainedTokenizerFast):
    """A tokenizer without batches of its own, that fails on some texts, and quotes them."""

    backend_tokenizer = None

    def __call__(self, text: str, **options: object) -> object:
        if QUOTE in text:
            raise TypeError(f"cannot encode {text}")
        return super().__call__(text, **options)


def test_a_text_that_the_tokenizer_fails_on_is_refused_alone_and_never_quoted() -> None:
    tokenisation = Tokenisation(Raises(tokenizer_object=TOKENIZER.backend_tokenizer))
    texts = [record(Text(text=text)) for text in ("a", QUOTE, "b")]
    usual, refused, other = tokenisation.layouts(texts)
    assert isinstance(usual, Layout) and isinstance(other, Layout) and isinstance(refused, DataError)
    assert refused.what == "line 1: the model's tokenizer refuses it"
    assert QUOTE not in refused.diagnostics()


def test_what_was_set_aside_before_is_no_evaluation_set() -> None:
    with pytest.raises(DataError, match="could not be read"):
        Tokenisation(TOKENIZER).evaluation_set([record(SetAsideContent())], positions=None)


@settings(deadline=None)
@given(some=st.lists(contents, max_size=6))
def test_records_that_are_laid_out_together_are_laid_out_as_alone(some: list[Content]) -> None:
    tokenisation = Tokenisation(TOKENIZER)
    records = [record(content) for content in some]
    for together, (alone,) in zip(
        tokenisation.layouts(records), (tokenisation.layouts([one]) for one in records), strict=True
    ):
        assert isinstance(together, Layout) and isinstance(alone, Layout)
        assert np.array_equal(together.tokens, alone.tokens) and together.learnt == alone.learnt


def test_examples_keep_the_order_of_their_records() -> None:
    made = examples(Tokenisation(TOKENIZER), [record(Text(text=text)) for text in ("a", "bb", "ccc")])
    assert [read(one) for one in made] == ["a<end>", "bb<end>", "ccc<end>"]


def test_a_tokenizer_is_loaded_from_a_model_folder(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    (made,) = examples(Tokenisation.load(str(tmp_path)), [record(Text(text="No pain."))], 16)
    assert np.array_equal(made.token_ids, example(Text(text="No pain."), max_tokens=16).token_ids)


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_folder_without_a_whole_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        TOKENIZER.save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="tokenizer"):
        Tokenisation.load(str(tmp_path))


def ending_tokenizer(single: str) -> PreTrainedTokenizerFast:
    """One that puts <end> where ``single`` says, as older Llama and Mistral fine-tunes do by add_eos_token."""
    tokenizer = byte_tokenizer()
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<end>", tokenizer.eos_token_id)]
    )
    return tokenizer


@pytest.mark.parametrize("single", ["$A <end>", "<end> $A", "<end> $A <end>", "<end> <end> $A <end>"])
def test_what_a_tokenizer_puts_around_a_text_is_around_prompt_and_completion_together(single: str) -> None:
    tokenizer = ending_tokenizer(single)
    opening = "<end>" * (single.index("$") // len("<end> "))
    made = example(PromptCompletion(prompt="Pain?", completion=" None."), tokenizer=tokenizer)
    assert (read(made), learnt(made)) == (f"{opening}Pain? None.<end>", " None.<end>")
    text = example(Text(text="No pain."), tokenizer=tokenizer)
    assert (read(text), learnt(text)) == (f"{opening}No pain.<end>", "No pain.<end>")


def spacing_tokenizer(scheme: str) -> PreTrainedTokenizerFast:
    """One that puts a space before a text's first word, as Llama's does."""
    vocabulary = {
        symbol: number for number, symbol in enumerate([*"▁abcdefghijklmnopqrstuvwxyz:?.\n", "<end>", "<pad>"])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")  # noqa: S106


@pytest.mark.parametrize("completion", ["none", " none", "\nnone"])
def test_no_space_that_nobody_wrote_is_learnt_before_a_completion(completion: str) -> None:
    tokenizer = spacing_tokenizer("first")
    made = example(PromptCompletion(prompt="pain?", completion=completion), tokenizer=tokenizer)
    assert tokenizer.decode(np.trim_zeros(made.token_ids, "b"), skip_special_tokens=True) == f"pain?{completion}"


def test_a_record_with_a_token_that_the_model_does_not_have_is_refused_by_its_position() -> None:
    beyond = Tokenisation(TOKENIZER, vocabulary_size=257)
    record_of_it = record(Text(text=f"{QUOTE} <pad>"))
    for refusing in (lambda one: examples(beyond, [one]), lambda one: beyond.evaluation_set([one], positions=None)):
        with pytest.raises(DataError, match="line 1") as refusal:
            refusing(record_of_it)
        assert QUOTE not in refusal.value.diagnostics()


@pytest.mark.parametrize("size", [1, 255, 256])
def test_a_tokenizer_of_another_model_is_refused_at_once(size: int) -> None:
    with pytest.raises(ModelError, match=f"the model, with {size}, does not have"):
        Tokenisation(TOKENIZER, vocabulary_size=size)


BROKEN_MARKS = {
    "the user's turn": MARKING_TEMPLATE.replace("assistant", "user"),
    "all turns": "{% for m in messages %}{% generation %}{{ m['content'] }}{% endgeneration %}{% endfor %}",
    "nothing": "{% for m in messages %}{{ m['content'] }}{% generation %}{% endgeneration %}{% endfor %}",
    "a header": "{% for m in messages %}{% generation %}>{% endgeneration %}{{ m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize("template", BROKEN_MARKS.values(), ids=BROKEN_MARKS.keys())
def test_a_template_that_marks_anything_but_what_the_assistant_says_is_refused(template: str) -> None:
    with pytest.raises(ModelError, match="not what the assistant says"):
        Tokenisation(byte_tokenizer(chat_template=template))


def test_a_template_that_asks_for_another_layout_than_the_trial_s_is_left_to_the_records() -> None:
    asking = "{{ messages[0]['role'] == 'system' or raise_exception('no system') }}" + MARKING_TEMPLATE
    Tokenisation(byte_tokenizer(chat_template=asking))


def test_what_a_library_says_of_a_tokenizer_is_told(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelError, match=r"cannot be loaded \(\w+: .+\)"):
        Tokenisation.load(str(tmp_path))


def test_numbers_that_a_tokenizer_leaves_out_are_room_for_the_last_of_its_tokens() -> None:
    vocabulary = {"well": 0, "ill": (1 << 16) + 5}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="well")))  # noqa: S106
    tokenisation = Tokenisation(tokenizer)
    made = Preparation(tokenisation=tokenisation, max_tokens=8).of_rows(
        "notes", named_rows("notes", [{"patient_id": "p", "text": "ill"}])
    )
    assert made.store.block.tokens.tolist() == [(1 << 16) + 5]
