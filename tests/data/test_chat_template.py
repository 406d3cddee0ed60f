"""Conversations as tokens: the same in every stage, with the template's end of turn, and no control token from a user.

The expected tokens are put together by hand: control tokens by id, everything between them as letters.

pytest tests/data/test_chat_template.py
"""

import datetime
import json

import pytest
import transformers
from conftest import TEXT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from instructgpt.data.rankings import tokenize_rankings
from instructgpt.data.tokenization import PromptTokenizer, split_assistant_turns
from instructgpt.errors import InputError
from instructgpt.evaluate.reward.scores import score_with_lengths
from instructgpt.records import Demonstration, Message, Prompt, Ranking, SkippedLines, parse_record, read_records
from instructgpt.sampling.cli import ScoredInput

EOS = "</s>"
CONTROL = [
    EOS,
    "<s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|head|>",
    "<|/head|>",
    "<|eot|>",
    "<turn>",
    "</turn>",
    "[U]",
    "[/U]",
]
LOOP = "{% for m in messages %}"
TEMPLATES = {
    "chatml": LOOP
    + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama": "{{ bos_token }}"
    + LOOP
    + "{{ '<|head|>' + m.role + '<|/head|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% set ns = namespace(first='') %}"
    + LOOP
    + "{% if m.role == 'system' %}{% set ns.first = m.content + '\n\n' %}{% else %}"
    + "{{ '<turn>' + ('model' if m.role == 'assistant' else 'user') + '\n' }}"
    + "{{ ns.first + m.content | trim + '</turn>\n' }}"
    + "{% set ns.first = '' %}{% endif %}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<turn>model\n' }}{% endif %}",
    "mistral": "{{ bos_token }}{% set ns = namespace(first='') %}"
    + LOOP
    + "{% if m.role == 'system' %}{% set ns.first = m.content + '\n\n' %}"
    + "{% elif m.role == 'user' %}{{ '[U] ' + ns.first + m.content + ' [/U]' }}{% set ns.first = '' %}"
    + "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "none": None,
}
ENDS = {"chatml": "<|im_end|>", "llama": "<|eot|>", "gemma": "</turn>", "mistral": EOS, "none": EOS}


def hf_tokenizer(template, *, adds_bos=True, more=(), special=True):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(TEXT, trainer)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    wrapped.add_special_tokens({"eos_token": EOS, "bos_token": "<s>"})
    wrapped.add_tokens(CONTROL, special_tokens=special)
    wrapped.add_tokens(list(more))
    if adds_bos:
        start = wrapped.convert_tokens_to_ids("<s>")
        wrapped.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", start)]
        )
    wrapped.chat_template = template
    return wrapped


def adds_bos(kind):
    return kind in ("llama", "gemma", "mistral")


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: PromptTokenizer(hf_tokenizer(text, adds_bos=adds_bos(kind))) for kind, text in TEMPLATES.items()}


@pytest.fixture(scope="module")
def letters():
    """The tokenizer before any control token was added to it."""
    state = json.loads(hf_tokenizer(None, adds_bos=False).backend_tokenizer.to_str())
    return Tokenizer.from_str(json.dumps(state | {"added_tokens": []}))


def pieces_by_hand(kind, turns):
    """Yield control tokens as themselves, and text as [text], of a prompt in the format of a family."""
    first = ""
    if adds_bos(kind):
        yield "<s>"
    if kind == "none" and [role for role, _ in turns] == ["user"]:
        yield [turns[0][1] + "\n"]
        return
    pending = ""
    for role, text in turns:
        if kind == "chatml":
            yield from ("<|im_start|>", [role + "\n" + text], "<|im_end|>", ["\n"])
        elif kind == "llama":
            yield from ("<|head|>", [role], "<|/head|>", ["\n\n" + text.strip()], "<|eot|>")
        elif kind == "none":
            pending += f"{role.capitalize()}:\n{text}"
            if role == "assistant":
                yield from ([pending], EOS)
                pending = ""
            pending += "\n"
        elif role == "system":
            first = text + "\n\n"
        elif kind == "gemma":
            name = "model" if role == "assistant" else "user"
            yield from ("<turn>", [name + "\n" + first + text.strip()], "</turn>", ["\n"])
            first = ""
        elif role == "user":
            yield from ("[U]", [" " + first + text + " "], "[/U]")
            first = ""
        else:
            yield from ([" " + text], EOS)
    if kind == "chatml":
        yield from ("<|im_start|>", ["assistant\n"])
    elif kind == "llama":
        yield from ("<|head|>", ["assistant"], "<|/head|>", ["\n\n"])
    elif kind == "gemma":
        yield from ("<turn>", ["model\n"])
    elif kind == "none":
        yield [pending + "Assistant:\n"]


def expected_prompt(kind, tokenizer, letters, turns):
    ids = []
    for piece in pieces_by_hand(kind, turns):
        ids += (
            [tokenizer.hf_tokenizer.convert_tokens_to_ids(piece)]
            if isinstance(piece, str)
            else letters.encode(*piece).ids
        )
    return ids


said = st.text(st.sampled_from(list("ab z\n.é서🙂<|>/[]U")), min_size=1, max_size=12).filter(lambda text: text.strip())
typed = st.builds(lambda a, token, b: a + token + b, said, st.sampled_from(CONTROL), said)
texts = said | typed


@st.composite
def conversations(draw):
    turns = [("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 3))):
        turns += [("user", draw(texts)), ("assistant", draw(texts))]
    return [*turns, ("user", draw(texts))]


class TokenRecorder:
    """A reward model that keeps the tokens it is asked to score."""

    context = 10_000

    def __init__(self, tokenizer):
        self.tokenizer, self.examples = tokenizer, []

    def score(self, examples):
        import torch

        self.examples += examples
        return torch.zeros(len(examples))


@settings(max_examples=200, deadline=None)
@given(turns=conversations(), answer=texts, kind=st.sampled_from(list(TEMPLATES)))
def test_one_conversation_is_the_same_tokens_in_every_stage(tokenizers, letters, turns, answer, kind):
    tokenizer = tokenizers[kind]
    messages = [{"role": role, "content": text} for role, text in turns]
    columns = {"messages": messages}
    expected = expected_prompt(kind, tokenizer, letters, turns)
    completion = [*letters.encode(answer).ids, tokenizer.hf_tokenizer.convert_tokens_to_ids(ENDS[kind])]

    ranking = Ranking.model_validate(columns | {"completions": (answer, answer + "!"), "ranks": (1, 2)})
    ((ranked,), _) = tokenize_rankings([ranking], tokenizer, 10_000)  # reward
    assert ranked.examples[0].prompt_ids == expected
    assert ranked.examples[0].completion_ids == completion
    assert tokenizer.encode_prompt(Prompt.model_validate(columns)) == expected  # ppo, sample
    demonstration = parse_record(
        Demonstration, json.dumps({"messages": [*messages, {"role": "assistant", "content": answer}]})
    )
    scored = ScoredInput.model_validate(demonstration.to_dict())
    for record in (demonstration, scored):  # sft, score
        example = tokenizer.encode_example(record, record.completion)
        assert (example.prompt_ids, example.completion_ids) == (expected, completion)
    recorder = TokenRecorder(tokenizer)
    score_with_lengths(recorder, [(columns, answer, True)])  # evaluate
    assert (recorder.examples[0].prompt_ids, recorder.examples[0].completion_ids) == (expected, completion)


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_end_of_turn_is_the_template_s(tokenizers, kind):
    tokenizer = tokenizers[kind]
    names = tokenizer.hf_tokenizer.convert_ids_to_tokens(list(tokenizer.stop_tokens))
    assert names == list(dict.fromkeys([EOS, ENDS[kind]]))
    assert tokenizer.encode_completion("a")[-1] == tokenizer.hf_tokenizer.convert_tokens_to_ids(ENDS[kind])
    assert tokenizer.encode_completion("a", finished=False) == tokenizer.encode_completion("a")[:-1]


def test_the_end_of_a_template_that_begins_turns_only():
    """GLM ends an answer with the next turn's role."""
    begins = LOOP + "{{ '<|head|>' + m.content if m.role == 'user' else '<|/head|>' + m.content }}{% endfor %}"
    begins += "{% if add_generation_prompt %}{{ '<|/head|>' }}{% endif %}"
    tokenizer = PromptTokenizer(hf_tokenizer(begins))
    assert tokenizer.hf_tokenizer.convert_ids_to_tokens([tokenizer.end_of_turn]) == ["<|head|>"]


def test_only_added_tokens_of_a_configuration_stop():
    tokenizer = PromptTokenizer(hf_tokenizer(TEMPLATES["chatml"], adds_bos=False))
    ids = tokenizer.hf_tokenizer.convert_tokens_to_ids
    tokenizer.add_stop_tokens([ids("a"), ids("<|eot|>"), tokenizer.eos, 10**6])
    assert tokenizer.stop_tokens == (tokenizer.eos, ids("<|im_end|>"), ids("<|eot|>"))


def test_control_tokens_that_are_not_marked_special_are_letters_too():
    tokenizer = PromptTokenizer(hf_tokenizer(TEMPLATES["chatml"], adds_bos=False, special=False, more=["<think>"]))
    ids = tokenizer.encode_prompt("a<|im_end|><think>")
    end, think = tokenizer.hf_tokenizer.convert_tokens_to_ids(["<|im_end|>", "<think>"])
    assert (ids.count(end), ids.count(think)) == (1, 1)
    assert think in tokenizer.encode_completion("<think>a"), "a model's own token stays one"


def test_a_unigram_piece_that_spells_a_control_token_is_split():
    pieces = [("<unk>", 0.0), (EOS, 0.0), *((letter, -3.0) for letter in "abUuser</s>:\nAistn")]
    backend = Tokenizer(models.Unigram(list(dict(pieces).items()), unk_id=0))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, unk_token="<unk>")
    tokenizer = PromptTokenizer(wrapped)
    assert tokenizer.eos not in tokenizer.encode_prompt(f"ab{EOS}a")
    assert wrapped.decode(tokenizer.encode_prompt(f"ab{EOS}a")).replace(" ", "") == f"ab{EOS}a\n"


def test_a_refused_conversation_is_a_bad_line(tmp_path):
    refuses = "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant') | int %}"
    refuses += "{{ raise_exception('turns must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    tokenizer = PromptTokenizer(hf_tokenizer(refuses))
    good = {"messages": [{"role": "user", "content": "a"}]}
    bad = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, (good, bad, good))))
    with pytest.raises(InputError, match=r"p\.jsonl:2: the chat template refuses the turns user, user .*alternate"):
        read_records(Prompt, path, None, tokenizer.check_prompt)
    skipped = SkippedLines(True)
    assert len(read_records(Prompt, path, skipped, tokenizer.check_prompt)) == 2
    assert len(skipped.reasons) == 1


def test_a_broken_template_is_named_at_load():
    with pytest.raises(InputError, match="chat template is broken"):
        PromptTokenizer(hf_tokenizer("{{ messages[0].content.nothing() }}"))


def test_a_template_that_ignores_system_turns_is_reported():
    ignores = LOOP + "{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    assert "ignores system turns" in PromptTokenizer(hf_tokenizer(ignores)).describe()
    assert "ignores" not in PromptTokenizer(hf_tokenizer(TEMPLATES["chatml"])).describe()


DATED = (
    "{% if not date_string is defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    '{{ date_string }} {{ strftime_now("%Y-%m") }}' + TEMPLATES["chatml"]
)


def test_a_date_is_fixed_and_inherited(tmp_path):
    tokenizer = PromptTokenizer(hf_tokenizer(DATED, adds_bos=False))
    tokenizer.pin_date(datetime.date(2001, 2, 3))
    rendered = tokenizer.hf_tokenizer.decode(tokenizer.encode_prompt("a"))
    assert rendered.startswith("03 Feb 2001 2001-02<|im_start|>user")
    tokenizer.hf_tokenizer.save_pretrained(tmp_path)
    again = PromptTokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path))
    again.pin_date(datetime.date(2020, 1, 1))  # has no effect: the model directory has a date
    assert again.encode_prompt("a") == tokenizer.encode_prompt("a")
    assert "date" in tokenizer.describe()
    assert "date" not in again.describe()


def test_every_assistant_turn_is_a_demonstration():
    turns = [("assistant", "hello"), ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")]
    record = Demonstration(messages=[{"role": r, "content": c} for r, c in turns], completion="d")
    learned = list(split_assistant_turns(record))
    assert [(len(each.messages or ()), each.completion) for each in learned] == [(3, "b"), (5, "d")]
    assert list(split_assistant_turns(Demonstration(prompt="a", completion="b"))) == [
        Demonstration(prompt="a", completion="b")
    ]


def test_every_window_and_document_begins_with_a_beginning_of_text():
    """Windows of five: <s> a b c d | <s> e </s> <s> f | <s> </s> <s> g h (the rest is left)."""
    from instructgpt.data.pretraining_text import build_corpus

    tokenizer = PromptTokenizer(hf_tokenizer(TEMPLATES["llama"]))
    ids = tokenizer.hf_tokenizer.convert_tokens_to_ids
    corpus = build_corpus(["zqxjk", "v", "wz!"], tokenizer, 4, seed=0)
    names = [tokenizer.hf_tokenizer.convert_ids_to_tokens(row) for row in corpus.tokens.tolist()]
    assert names == [["<s>", *"zqxj"], ["<s>", "k", EOS, "<s>", "v"], ["<s>", EOS, "<s>", "w", "z"]]
    starts = {example.completion_ids[0]: example.document_starts for example in corpus.examples(0, 3)}
    assert starts == {ids("z"): (), ids("k"): (3,), ids(EOS): (2,)}


def test_content_parts_are_text_and_other_roles_are_named():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = Message.model_validate({"role": "user", "content": parts, "tool_calls": None})
    assert message.content == "ab"
    for row, reason in (
        ({"messages": [{"role": "developer", "content": "x"}]}, "role 'developer' is not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "found image_url"),
    ):
        with pytest.raises(ValueError, match=reason):
            parse_record(Prompt, json.dumps(row))


# --- templates of another form ---------------------------------------------------------------------------------------

PARTS = (
    LOOP
    + "{{ '<|im_start|>' + m.role + '\n' }}{% for part in m.content %}{{ part.text }}{% endfor %}{{ '<|im_end|>\n' }}"
    + "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as models that read images have it: the letters of a text are no parts, so all of it would be dropped."""


def test_a_template_that_reads_parts_gets_one(tmp_path):
    turns = [{"role": "user", "content": "say [U] <|im_end|>"}, {"role": "assistant", "content": "a  b"}]
    prompt = Prompt.model_validate({"messages": [*turns, {"role": "user", "content": " é "}]})
    tokenizer, plain = (PromptTokenizer(hf_tokenizer(one)) for one in (PARTS, TEMPLATES["chatml"]))
    assert tokenizer.encode_prompt(prompt) == plain.encode_prompt(prompt)
    assert tokenizer.stop_tokens == plain.stop_tokens
    tokenizer.hf_tokenizer.save_pretrained(tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    as_parts = [{"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    texts = {saved.apply_chat_template(one, tokenize=False) for one in (turns, as_parts)}
    assert texts == {plain.hf_tokenizer.apply_chat_template(turns, tokenize=False)}
    assert PromptTokenizer(saved).encode_prompt(prompt) == plain.encode_prompt(prompt)


def test_the_default_one_of_named_templates_is_used_and_saved(tmp_path):
    named = {"default": TEMPLATES["chatml"], "tool_use": "{{ tools }}"}
    hf_tokenizer(named).save_pretrained(tmp_path / "named")
    tokenizer = PromptTokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path / "named"))
    plain = PromptTokenizer(hf_tokenizer(TEMPLATES["chatml"]))
    prompt = Prompt.model_validate({"prompt": "hi"})
    assert tokenizer.encode_prompt(prompt) == plain.encode_prompt(prompt)
    tokenizer.hf_tokenizer.save_pretrained(tmp_path / "saved")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == TEMPLATES["chatml"]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ({"rag": "x", "tool_use": "y"}, "has several chat templates \\(rag, tool_use\\) and none is named 'default'"),
        (LOOP + "{{ '<turn>' + m.role }}{% endfor %}", "does not write the text of a user turn"),
        (LOOP + "{{ m.content }", "chat template is broken: .*unexpected"),
        (LOOP + "{{ raise_exception('no') }}{% endfor %}", "chat template is broken: .*\\(no\\)"),
    ],
    ids=["no default", "drops text", "syntax", "refuses all"],
)
def test_a_template_that_cannot_serve_is_refused_at_load(template, message):
    with pytest.raises(InputError, match=message):
        PromptTokenizer(hf_tokenizer(template))
