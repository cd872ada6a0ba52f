"""The tokenizer and chat template of nano, thoughts, refusals; transformers is the oracle."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from dgemma_core.errors import CheckpointError, RequestError
from dgemma_core.files.text import Tokenizer, load_tokenizer, strip_thought
from dgemma_core.nano import families
from dgemma_core.nano import tokenizer as nano_tokenizer

NANO = families.TEST_PROMPTS.parent / "weights"
CHATS = [
    [{"role": "user", "content": "Compute 4 - 1 - 7"}],
    [
        {"role": "system", "content": " Be short. "},
        {"role": "user", "content": "Spell backward:\nSUN"},
        {"role": "assistant", "content": "<|channel>thought\nhm\n<channel|>NUS"},
        {"role": "user", "content": "Again: é, 漢字, 🙂"},
    ],
]
GEMMA_LIKE = """{{ bos_token }}{% if enable_thinking is defined and enable_thinking %}\
{{ '<|turn>system\\n<|think|>\\n<turn|>\\n' }}{% endif %}{% for m in messages %}\
{{ '<|turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m.content + '<turn|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|turn>model\\n' }}\
{% if not enable_thinking %}{{ '<|channel>thought\\n<channel|>' }}{% endif %}{% endif %}"""


@pytest.fixture(scope="module")
def nano() -> Tokenizer:
    tokenizer = load_tokenizer(NANO)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def oracle():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(NANO)


def test_special_tokens_have_gemmas_ids_and_names(nano):
    assert (nano.pad_token_id, nano.eos_token_id, nano.bos_token_id) == (0, 1, 2)
    for id, token in enumerate(nano_tokenizer.SPECIAL):
        assert nano.token_id(token) == id and nano.token_string(id) == token
    assert nano.vocab_size == 1024
    assert nano.media_token_ids == {9, 10, 11}


@pytest.mark.slow
def test_the_tokenizer_of_nano_talk_is_rebuilt_but_for_what_the_texts_have_gained(tmp_path):
    """It was built from the texts of its first run; these have gained some wordings since, and later runs keep it."""
    nano_tokenizer.write_tokenizer(tmp_path, 2048)
    kept, built = (
        load_tokenizer(folder).backend.get_vocab() for folder in (NANO.parent / "talk", tmp_path)
    )
    assert len(kept) == len(built) == 2048
    assert len(kept.keys() & built.keys()) >= 2000
    assert {name: id for name, id in kept.items() if id < 268} == {
        name: id for name, id in built.items() if id < 268
    }, "control tokens and bytes"
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (NANO.parent / "talk" / name).read_bytes(), name


@pytest.mark.slow
def test_encoding_round_trips(nano):
    for name in families.NAMES:
        for seed in range(50):
            drawn = families.example(name, seed)
            for text in (drawn.prompt, drawn.answer):
                assert nano.decode(nano.encode(text)) == text
    for text in (
        "",
        " ",
        "\n \n\t  x",
        "é漢字🙂∧∨ naïve",
        "\x00\x7f",
        "a  b   c    \n",
        "-–—…'\"{}",
    ):
        ids = nano.encode(text)
        assert nano.decode(ids) == text
        assert nano.encode(text, bos=True) == [2, *ids]


def test_a_token_holds_at_most_one_digit_and_spelled_capitals_stand_alone(nano):
    for id in range(nano.vocab_size):
        assert sum(character.isdigit() for character in nano.token_string(id)) <= 1 or (
            nano.token_string(id).startswith("<0x")
        )
    assert len(nano.encode("1234")) == 4
    assert len(nano.encode("AMMONIA")) == 7
    assert [nano.token_string(id) for id in nano.encode("1 2")] == ["1", " 2"]


def test_token_strings_join_to_the_text_and_show_stray_bytes(nano):
    text = "Sort words ascending:\nfederal, Only"
    assert "".join(map(nano.token_string, nano.encode(text))) == text
    strings = [nano.token_string(id) for id in nano.encode("字")]
    assert "".join(strings) == "<0xE5><0xAD><0x97>"
    assert nano.token_string(nano.vocab_size) == f"<{nano.vocab_size}>"


@pytest.mark.slow
def test_ids_equal_those_of_transformers(nano, oracle):
    for name in families.NAMES:
        for seed in range(20):
            prompt = families.example(name, seed).prompt
            assert nano.encode(prompt) == oracle.encode(prompt, add_special_tokens=False)
    assert len(oracle) == nano.vocab_size


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("chat", CHATS)
def test_chat_prompts_equal_those_of_transformers(nano, oracle, chat, thinking):
    expected = oracle.apply_chat_template(
        chat, add_generation_prompt=True, enable_thinking=thinking, return_dict=False
    )
    assert nano.chat_ids(chat, thinking=thinking) == expected


def test_chat_prompts_read_as_gemma_writes_them(nano):
    ids = nano.chat_ids("Hi")
    assert nano.decode(ids, special=True) == "<bos><|turn>user\nHi<turn|>\n<|turn>model\n"
    assert len(ids) == 9 + len(nano.encode("Hi"))
    text = nano.decode(nano.chat_ids("Hi", system="Be short.", thinking=True), special=True)
    assert text.startswith("<bos><|turn>system\n<|think|>Be short.<turn|>\n<|turn>user\nHi")
    again = nano.decode(nano.chat_ids(CHATS[1]), special=True)
    assert "thought" not in again and "<|turn>model\nNUS<turn|>\n" in again


@pytest.mark.parametrize("end", [["<turn|>"], ["<eos>"], []])
@pytest.mark.parametrize("template", ["nano", "gemma"])
def test_the_next_turn_continues_what_is_encoded(nano, template, end):
    tokenizer = nano if template == "nano" else Tokenizer(nano.backend, nano.named, GEMMA_LIKE)
    first = tokenizer.chat_ids("Compute 1 + 1")
    kept = [*tokenizer.encode("2"), *(tokenizer.token_id(token) for token in end)]
    previous = [*first, *kept]
    following = tokenizer.next_turn_ids(previous, "And 2 + 2?")
    assert following[: len(previous)] == previous
    added = tokenizer.decode(following[len(previous) :], special=True)
    opened = "<|channel>thought\n<channel|>" if template == "gemma" else ""
    closing = "" if end == ["<turn|>"] else "<turn|>"
    assert added == f"{closing}\n<|turn>user\nAnd 2 + 2?<turn|>\n<|turn>model\n{opened}"


def test_without_thoughts_the_next_turn_is_what_the_template_renders(nano):
    answer = nano.encode("2<turn|>")
    following = nano.next_turn_ids([*nano.chat_ids("1 + 1", system="Sum."), *answer], "2 + 2")
    chat = [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2 + 2"},
    ]
    assert following == nano.chat_ids(chat, system="Sum.")


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("42", "", "42"),
        ("<|channel>thought\n<channel|>42", "", "42"),
        ("<|channel>thought\n6 * 7\n<channel|>42", "6 * 7", "42"),
        ("6 * 7<channel|>42", "6 * 7", "42"),
        ("<|channel>thought\n6 *", "6 *", ""),
        ("<|channel>thought", "", ""),
        ("4<|channel>thought\nhm<channel|>2", "hm", "42"),
        ("<|channel>thought\na<channel|><|channel>thought\nb<channel|>42", "a\nb", "42"),
        ("", "", ""),
    ],
)
def test_thoughts_are_stripped_from_text_and_ids(nano, text, thought, answer):
    assert strip_thought(text) == (thought, answer)
    assert nano.strip_thought(nano.encode(text + "<turn|><eos>")) == (thought, answer)


@pytest.mark.parametrize("kind", ["image", "audio", "video"])
def test_media_are_refused_in_one_line(nano, kind):
    parts = [{"type": "text", "text": "What is this?"}, {"type": kind}]
    for ask in (
        lambda: nano.chat_ids([{"role": "user", "content": parts}]),
        lambda: nano.chat_ids(f"Look: <|{kind}|>"),
        lambda: nano.encode(f"<|{kind}|>"),
        lambda: nano.next_turn_ids([2], {"role": "user", "content": parts}),
    ):
        with pytest.raises(RequestError, match="images, audio and video are not read") as refused:
            ask()
        assert kind in str(refused.value) and "\n" not in str(refused.value)
    assert nano.chat_ids([{"role": "user", "content": parts[:1]}]) == nano.chat_ids("What is this?")


@pytest.mark.parametrize(
    ("chat", "options", "complaint"),
    [
        ([], {}, "ends with the user's message"),
        ([{"role": "assistant", "content": "x"}], {}, "ends with the user's message"),
        ([{"role": "user"}], {}, "role and content"),
        ([CHATS[0][0], 5], {}, "role and content"),
        ([5, CHATS[0][0]], {"system": "x"}, "role and content"),
        (5, {}, "a chat must be a text, or messages"),
        (None, {}, "a chat must be a text, or messages"),
        ("Hi", {"system": 5}, "content is a text"),
        ("Hi", {"thinking": "yes"}, "thinking must be True or False"),
        ([{"role": "robot", "content": "x"}, CHATS[0][0]], {}, "roles are system"),
        (CHATS[1], {"system": "Another."}, "two system prompts"),
    ],
)
def test_chats_without_meaning_are_refused(nano, chat, options, complaint):
    with pytest.raises(RequestError, match=complaint):
        nano.chat_ids(chat, **options)


def test_what_the_template_cannot_do_is_said(nano):
    with pytest.raises(RequestError, match="no chat template"):
        Tokenizer(nano.backend, nano.named).chat_ids("Hi")
    with pytest.raises(RequestError, match="no thinking mode"):
        Tokenizer(nano.backend, nano.named, "{{ messages }}").chat_ids("Hi", thinking=True)
    with pytest.raises(RequestError, match="leaves out earlier answers"):
        Tokenizer(nano.backend, nano.named, "{{ bos_token }}").next_turn_ids([2], "Hi")
    with pytest.raises(CheckpointError, match="damaged"):
        Tokenizer(nano.backend, nano.named, "{% if %}").chat_ids("Hi")
    with pytest.raises(RequestError, match="no BOS"):
        Tokenizer(nano.backend, {}).encode("Hi", bos=True)


def test_a_template_is_sandboxed(nano):
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RequestError, match="refuses"):
        Tokenizer(nano.backend, nano.named, escape).chat_ids("Hi")


def test_folders_without_or_with_broken_tokenizers(nano, tmp_path):
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(CheckpointError, match="SentencePiece"):
        load_tokenizer(tmp_path)
    whole = (NANO / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    shutil.copy(NANO / "tokenizer.json", tmp_path)
    bare = load_tokenizer(tmp_path)
    assert bare.bos_token_id is None and bare.template is None
    for damaged in ("{", "[]"):
        (tmp_path / "tokenizer_config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match="tokenizer_config"):
            load_tokenizer(tmp_path)
    for damaged in (
        {"bos_token": {}},
        {"bos_token": 5},
        {"chat_template": 5},
        {"chat_template": [5]},
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(damaged))
        with pytest.raises(CheckpointError, match="tokenizer_config") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    settings = {
        "bos_token": {"content": "<bos>"},
        "chat_template": [{"name": "default", "template": "{{ bos_token }}x"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(tmp_path).chat_ids("Hi") == [2, *nano.encode("x")]


def test_a_tokenizer_neither_cuts_nor_pads_nor_rolls_dice(nano, tmp_path):
    content = json.loads((NANO / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst",
                             "stride": 0}  # fmt: skip
    content["padding"] = {"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_id": 0,
                          "pad_type_id": 0, "pad_token": "<pad>", "pad_to_multiple_of": None}  # fmt: skip
    content["model"]["dropout"] = 0.9
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    text = "Compute the sum of many words"
    assert load_tokenizer(tmp_path).encode(text) == nano.encode(text)


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 2,
    "pair": [],
    "special_tokens": {},
}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "charsmap"),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled"}]}},
            "charsmap",
        ),
        ({"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 50}}, "by more than 4096"),
        ({"normalizer": {**REPLACE, "content": "a" * 10**6}}, "by more than 4096"),
        ({"decoder": {"type": "Sequence", "decoders": [REPLACE] * 50}}, "by more than 4096"),
        ({"post_processor": {**TEMPLATE, "single": TEMPLATE["single"] * 10**4}}, "more than 4096"),
        ({"post_processor": {"type": "Sequence", "processors": [TEMPLATE] * 20}}, "more than 4096"),
        ({"prefix": "##"}, "continuing_subword_prefix"),
        ({"prefix": 5}, "continuing_subword_prefix"),
        ({"model": None}, "with a model"),
        ({"model": {"type": "BPE"}}, "not a tokenizer"),
        ({"normalizer": {"type": "Nothing"}}, "not a tokenizer"),
        ({"version": "\x1b[2J"}, "not a tokenizer"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}}}, "not a tokenizer"),
    ],
)
def test_tokenizers_that_would_panic_are_refused(change, match, tmp_path):
    content = json.loads((NANO / "tokenizer.json").read_text())
    prefix = change.pop("prefix", None)
    if prefix is not None:
        content["model"]["continuing_subword_prefix"] = prefix
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(CheckpointError, match=match) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).isprintable() and "tokenizer.json" in str(caught.value)


def test_a_panic_at_a_text_is_one_error(tmp_path):
    content = json.loads((NANO / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RequestError, match=r"cannot be encoded.*non-zero"):
        load_tokenizer(tmp_path).encode("Hi")


def test_files_that_are_pipes_or_no_text(tmp_path):
    shutil.copy(NANO / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read"):
        load_tokenizer(tmp_path)
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match=f"{name}: expected a regular file, found a pipe"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content", [None, 5, {}, [5], [{"type": "text"}], [{"type": "text", "text": 5}], [{"type": []}]]
)
def test_messages_of_another_form_are_refused(nano, content):
    with pytest.raises(RequestError, match="a message's content is"):
        nano.chat_ids([{"role": "user", "content": content}])


@pytest.mark.parametrize("ids", [[-1], [2**70], ["x"], [None]])
def test_what_are_no_ids_is_refused(nano, ids):
    with pytest.raises(RequestError, match="cannot be decoded"):
        nano.decode(ids)


@pytest.mark.subprocess
def test_loading_and_asking_imports_no_transformers():
    program = (
        "import sys\n"
        "from dgemma_core.files.text import load_tokenizer\n"
        f"load_tokenizer({str(NANO)!r}).chat_ids('Hi')\n"
        "assert not {'transformers', 'reasoning_gym', 'pandas'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
