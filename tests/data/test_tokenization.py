"""The one place where text becomes tokens: templates, one beginning-of-text, end-of-text, the same tokens in every
stage.

pytest tests/data/test_tokenization.py
"""

import copy

import pytest
from conftest import CPU, TEXT, tokenizer_with
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.pretraining_text import build_corpus, hold_out_documents, iter_documents, train_tokenizer
from instructgpt.data.rankings import balanced_labeler_folds, flatten_ranks, prompt_microbatches, tokenize_rankings
from instructgpt.data.tokenization import PromptTokenizer, tokenize_demonstrations
from instructgpt.errors import InputError
from instructgpt.models.policy import load_policy, load_tokenizer
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Demonstration, Message, Prompt, Ranking
from instructgpt.sampling.completions import SampledCompletion, retokenize_for
from instructgpt.train.reward_functions import Reward
from instructgpt.train.rollout import PPOModels, collect_rollout

TALK = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hi!"),
    Message(role="user", content="Name a frog."),
)
ODD = [
    "서울은 어디에",
    "🌊👩🏽‍🚀",
    "line\u2028separator",
    "\u0085\u00a0\ufeff",
    "e\u0301 ‮left",
    "\x00\x07",
    " \t two  spaces ",
    "\r\n",
    "<|endoftext|>",
]


@pytest.fixture(scope="module")
def renderers(tokenizer):
    return {kind: PromptTokenizer(tokenizer_with(tokenizer, kind)) for kind in ("plain", "pad_is_eos", "bos", "chat")}


def said(render, tokens):
    return render.hf_tokenizer.decode(tokens, skip_special_tokens=False)


def test_the_plain_template(renderers):
    render = renderers["plain"]
    assert said(render, render.encode_prompt("Name a frog.")) == "Name a frog.\n"
    example = render.encode_example("Name a frog.", "croak")
    assert said(render, example.prompt_ids + example.completion_ids) == "Name a frog.\ncroak<|endoftext|>"


def test_turns_of_a_conversation(renderers):
    """What a conversation's next prompt begins with is what its last turn was rendered as,
    completion and end included.
    """
    plain, chat = renderers["plain"], renderers["chat"]
    asked = Prompt(messages=TALK)
    assert said(plain, plain.encode_prompt(asked)) == (
        "System:\nBe brief.\nUser:\nHello\nAssistant:\nHi!<|endoftext|>\nUser:\nName a frog.\nAssistant:\n"
    )
    assert said(chat, chat.encode_prompt(asked)) == (
        "<|start|><|system|>Be brief.<|user|>Hello<|assistant|>Hi!<|endoftext|><|user|>Name a frog.<|assistant|>"
    )
    for render in (plain, chat):
        earlier = render.encode_example(Prompt(messages=TALK[:2]), "Hi!")
        assert render.encode_prompt(asked)[: len(earlier)] == earlier.prompt_ids + earlier.completion_ids


@pytest.mark.parametrize(("kind", "count"), [("plain", 0), ("pad_is_eos", 0), ("bos", 1), ("chat", 1)])
@pytest.mark.parametrize("text", ["Name a frog.", "<|start|>Name a frog.", "\n"])
def test_exactly_one_beginning_of_text(renderers, kind, count, text):
    render = renderers[kind]
    bos = render.hf_tokenizer.bos_token_id
    assert render.encode_prompt(text).count(bos) == count, "a prompt cannot spell it"
    assert render.encode_text(text).count(bos) == (
        1 if kind == "bos" or (bos is not None and text.startswith("<|start|>")) else 0
    )
    assert bos not in render.encode_completion("croak")


@pytest.mark.parametrize("kind", ["plain", "pad_is_eos", "bos", "chat"])
def test_end_of_text_ends_a_completion_and_nothing_else(renderers, kind):
    render = renderers[kind]
    assert render.encode_completion("croak")[-1] == render.eos
    assert render.encode_completion("croak").count(render.eos) == 1
    assert render.encode_completion("croak", finished=False) == render.encode_completion("croak")[:-1], (
        "none is made up for what was cut off"
    )
    assert render.encode_completion("") == [render.eos]
    assert render.encode_completion("", finished=False) == []
    assert render.encode_completion("a<|endoftext|>b").count(render.eos) == 1, "a text cannot spell its own end"


@pytest.mark.parametrize("kind", ["plain", "bos", "chat"])
@pytest.mark.parametrize("text", ODD)
def test_odd_characters_survive(renderers, kind, text):
    render = renderers[kind]
    assert render.decode(render.encode_completion(text)) == text
    if "<|" not in text:
        assert text in said(render, render.encode_prompt(text))


@given(st.text(max_size=40))
def test_any_text_survives(tokenizer, text):
    assert PromptTokenizer(tokenizer).decode(PromptTokenizer(tokenizer).encode_completion(text)) == text


def test_the_template_is_saved_with_the_tokenizer(renderers, tmp_path):
    for kind, render in renderers.items():
        render.hf_tokenizer.save_pretrained(tmp_path / kind)
        again = load_tokenizer(tmp_path / kind)
        assert again.is_compatible(render)
        assert again.encode_prompt(Prompt(messages=TALK)) == render.encode_prompt(Prompt(messages=TALK))


def test_who_shares_tokens_with_whom(renderers, tokenizer):
    plain, again = renderers["plain"], PromptTokenizer(copy.deepcopy(tokenizer))
    assert plain.is_compatible(again)
    assert plain.is_compatible(renderers["pad_is_eos"]), "padding is never written"
    again.hf_tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert plain.is_compatible(again)
    assert again.is_compatible(plain)
    assert not plain.is_compatible(renderers["bos"])
    assert not renderers["bos"].is_compatible(renderers["chat"])
    assert not plain.is_compatible(PromptTokenizer(train_tokenizer(TEXT[:2], 280)))


def test_a_tokenizer_without_end_of_text_is_refused(tokenizer):
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        PromptTokenizer(endless)


@pytest.mark.parametrize("kind", ["plain", "bos", "chat"])
def test_every_stage_sees_the_same_tokens(save, save_reward, kind):
    """SFT, reward model and PPO: prompt and completion are tokenised apart and joined as tokens."""
    policy, render = load_policy(save("llama", kind), CPU)
    reward = load_reward_model(save_reward("llama", kind), CPU)
    prompt, text = "Name a col", "our of the sky."  # would be cut otherwise if tokenised as one text
    ((sft,), _) = tokenize_demonstrations([Demonstration(prompt=prompt, completion=text)], render, 64)
    ((ranked,), _) = tokenize_rankings(
        [Ranking(prompt=prompt, completions=(text, "croak"), ranks=(1, 2))], reward.tokenizer, 64
    )
    assert ranked.examples[0] == sft == TokenizedExample(render.encode_prompt(prompt), render.encode_completion(text))
    rollout = collect_rollout(
        PPOModels(policy, policy, reward, Reward.from_model(reward, render), policy, render),
        [Prompt(prompt=prompt)] * 3,
        max_tokens=5,
        eos_penalty=0,
        seed=0,
    )
    assert all(example.prompt_ids == sft.prompt_ids for example in rollout.examples)
    assert reward.score(rollout.examples).tolist() == pytest.approx(rollout.scores.tolist())


def test_a_foreign_reward_model_reads_the_text(save, save_reward):
    render, foreign = load_tokenizer(save()), load_reward_model(save_reward("llama", "foreign"), CPU).tokenizer
    asked = Prompt(messages=TALK)
    answers = [
        SampledCompletion(
            Prompt(prompt="Name a frog."), "croak", render.encode_example("Name a frog.", "croak"), finished=True
        ),
        SampledCompletion(asked, "croak", render.encode_example(asked, "croak", finished=False), finished=False),
    ]
    ended, cut = retokenize_for(foreign, render, answers)
    assert said(foreign, ended.prompt_ids + ended.completion_ids) == "<|endoftext|>Name a frog.\ncroak<|endoftext|>"
    assert said(foreign, cut.prompt_ids + cut.completion_ids).endswith("User:\nName a frog.\nAssistant:\ncroak")


def test_demonstrations_that_do_not_fit_are_counted(render):
    short, long = Demonstration(prompt="a", completion="b"), Demonstration(prompt="a", completion="b" * 70)
    examples, left_out = tokenize_demonstrations([short, long, short], render, 10)
    assert (len(examples), left_out) == (2, 1)
    assert len(tokenize_demonstrations([short], render, 4)[0][0]) == 4
    with pytest.raises(InputError, match="no demonstration fits the context of 3 tokens; the shortest has 4"):
        tokenize_demonstrations([short], render, 3)


# --- rankings by prompt -----------------------------------------------------------------------------------------------


def test_rankings_of_the_same_completions_are_one_ranked_prompt(render):
    rankings = [
        Ranking(prompt="p", completions=("x", "y", "z"), ranks=(1, 2, 3), labeler="ann"),
        Ranking(prompt="p", completions=("z", "x", "y"), ranks=(1, 1, 2), labeler="bob", cohort="heldout"),
        Ranking(prompt="p", completions=("x", "y"), ranks=(2, 1), labeler="ann"),
        Ranking(prompt="q", completions=("x", "y", "z"), ranks=(5, 5, 5), labeler="ann"),
    ]
    prompts, left_out = tokenize_rankings(rankings, render, 64)
    assert [len(prompt.examples) for prompt in prompts] == [3, 2]
    assert [(order.ranks, order.labeler, order.cohort) for order in prompts[0].labeler_ranks] == [
        ((1, 2, 3), "ann", "training"),
        ((1, 2, 1), "bob", "heldout"),  # of x, y, z: bob's second, third and first
    ]
    assert left_out == {"rankings without a decided pair": 1, "completions longer than the context": 0}


def test_a_completion_that_stands_twice_keeps_both_ranks(render):
    rankings = [
        Ranking(prompt="p", completions=("x", "y"), ranks=(1, 2)),
        Ranking(prompt="p", completions=("x", "y", "y"), ranks=(2, 1, 3)),
        Ranking(prompt="p", completions=("y", "x", "y"), ranks=(1, 2, 3)),
    ]
    prompts, _ = tokenize_rankings(rankings, render, 64)
    assert [[order.ranks for order in prompt.labeler_ranks] for prompt in prompts] == [[(1, 2)], [(2, 1, 3), (2, 1, 3)]]


def test_a_completion_that_was_cut_off_has_no_end_in_a_ranking_either(render):
    ranking = Ranking(prompt="p", completions=("x", "y"), ranks=(1, 2), finish=("length", "stop"))
    ((prompt,), _) = tokenize_rankings([ranking], render, 64)
    assert [example.completion_ids[-1] == render.eos for example in prompt.examples] == [False, True]


def test_a_completion_that_does_not_fit_leaves_its_ranking(render):
    prompts, left_out = tokenize_rankings(
        [Ranking(prompt="p", completions=("x", "y" * 70, "z"), ranks=(2, 1, 3))], render, 10
    )
    assert (len(prompts[0].examples), prompts[0].labeler_ranks[0].ranks) == (2, (2, 3))
    assert left_out["completions longer than the context"] == 1


def test_orders_laid_flat_by_hand(render):
    rankings = [
        Ranking(prompt="p", completions=("x", "y"), ranks=(1, 2)),
        Ranking(prompt="q", completions=("x", "y", "z"), ranks=(3, 1, 2)),
        Ranking(prompt="p", completions=("y", "x"), ranks=(1, 2)),
    ]
    completion, ranking, rank = flatten_ranks(tokenize_rankings(rankings, render, 64)[0])
    assert completion.tolist() == [0, 1, 0, 1, 2, 3, 4]
    assert ranking.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert rank.tolist() == [1, 2, 2, 1, 3, 1, 2]


def test_token_groups_hold_every_task_once_within_the_budget(render):
    prompts, _ = tokenize_rankings(
        [Ranking(prompt="p" * n, completions=("x", "yy"), ranks=(1, 2)) for n in (1, 9, 3, 9, 20)], render, 64
    )
    for budget in (1, 20, 60, 10_000):
        groups = list(prompt_microbatches(prompts, budget))
        assert sorted(id(prompt) for group in groups for prompt in group) == sorted(map(id, prompts))
        sizes = [
            sum(len(t.examples) for t in group) * max(len(e) for t in group for e in t.examples) for group in groups
        ]
        assert all(len(group) == 1 or size <= budget for group, size in zip(groups, sizes, strict=True))


def test_labelers_in_groups_of_equal_work(render):
    rankings = [
        Ranking(prompt=f"{labeler}{n}", completions=("x", "y"), ranks=(1, 2), labeler=labeler)
        for labeler, count in (("ann", 5), ("bob", 3), ("cid", 2), ("dee", 1), ("eve", 1))
        for n in range(count)
    ]
    assert balanced_labeler_folds(tokenize_rankings(rankings, render, 64)[0], 2) == [
        {"ann", "dee"},
        {"bob", "cid", "eve"},
    ]


# --- pretraining text ------------------------------------------------------------------------------------------------


def test_windows_of_a_corpus_by_hand(render):
    # "ab" end "c" end "ddd" end: eight tokens, two windows of three and the one after, the rest is left
    corpus = build_corpus(["ab", "c", "ddd"], render, 3, seed=0)
    a, b, c, d = (render.hf_tokenizer(letter)["input_ids"][0] for letter in "abcd")
    assert corpus.tokens.tolist() == [[a, b, render.eos, c], [render.eos, d, d, d]]
    first, second = (
        TokenizedExample([a], [b, render.eos, c], document_starts=(2,)),
        TokenizedExample([render.eos], [d, d, d]),
    )
    assert corpus.examples(0, 2) in ([first, second], [second, first])
    with pytest.raises(InputError, match="the corpus has 3 tokens, less than one window of 4"):
        build_corpus(["ab"], render, 3, seed=0)


def test_windows_come_in_an_endless_stream(render):
    corpus = build_corpus([letter * 6 for letter in "abcdefgh"], render, 6, seed=1)
    stream = corpus.windows(0, 24).tolist()
    assert corpus.windows(5, 11).tolist() == stream[5:16]
    assert all(sorted(stream[i : i + 8]) == sorted(corpus.tokens.tolist()) for i in (0, 8, 16))
    assert stream[:8] != stream[8:16], "each time round in another order"


def test_a_book_is_read_in_pieces_as_one_document(render):
    text = "ab\n" * 40_000
    corpus = build_corpus([text], render, 99, seed=0)
    assert corpus.tokens.flatten().eq(render.eos).sum() <= 1
    assert build_corpus([text], render, 99, seed=0, max_windows=7).tokens.tolist() == corpus.tokens[:7].tolist()


def test_one_text_file_is_enough_to_hold_some_out(tmp_path):
    (tmp_path / "book.txt").write_text("".join(f"Line {n} of the book.\n" for n in range(500)))
    texts = list(iter_documents([tmp_path / "book.txt"]))
    training, held_out = hold_out_documents(texts, 0.01)
    assert all(piece in texts[0] for piece in training + held_out)
    assert sum(map(len, training + held_out)) == len(texts[0])
    assert 0.005 < sum(map(len, held_out)) / len(texts[0]) < 0.04
    assert hold_out_documents([str(n) for n in range(200)], 0.01)[1] == ["0", "100"]
    assert hold_out_documents([], 0.01) == ([], [])
