"""Files in the layout of the paper's published samples: twelve models and several prompts per file, written by pandas.

pandas leaves the first column unnamed, doubles quotes, keeps line ends in cells, and leaves missing cells empty.
Expected values come from other libraries or hand computations.
"""

from __future__ import annotations

import json
from itertools import product
from statistics import mean

import pandas
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from instructgpt.cli import run_command as command
from instructgpt.report.naming import group_by_family, parse_model_size
from instructgpt.report.paper_table14 import PAPER_MODELS, PAPER_TABLE_14

PASSAGE = (
    'Title: Sea\n\nBackground: The sea, called "the wide one",\nhas no end.\n\nQ: What is wide?\n\nA: the sea\n\nQ: '
)
SHOTS = {"zeroshot": "zero_shot", "fewshot": "few_shot"}


def shot_samples():
    """Return samples of squad, drop and wmt15 by model and shot setting, the prompts of one question together."""
    squad, drop, french = [], [], []
    for number, (model, shots) in product(range(2), product(PAPER_MODELS, SHOTS)):
        names = {"model_type": model, "prompt_type": shots}
        place = PAPER_MODELS.index(model) + 1
        context, reference = (
            f"{PASSAGE}Which {number}?\n\nA:",
            ('"the wide one"|wide one', "Not in background.")[number],
        )
        first = 'the "wide" sea' if place % 2 else "Not in background."
        sample = (first, "" if place % 3 else "Not in background")[number]
        squad.append(names | {"context": context, "ref_text": reference, "sample": sample})
        passage = f"Passage: There are {place} frogs | and toads.\nQuestion: How many {number}?\nAnswer:"
        sample = "12" if number < place % 3 else "about 12, or 13"
        drop.append(names | {"context": passage, "ref_text": "12", "sample": sample})
        english = f"The sea is wide and has {'no end' if number else 'an end'}, they say."
        sample = english if shots == "fewshot" else english.replace("wide", "deep").replace("they say", "or so")
        context = f"French: La mer {number} !\nEnglish:"
        french.append(names | {"context": context, "ref_text": english, "sample": sample})
    return {"squad": squad, "drop": drop, "wmt15": french}


def other_samples():
    """Return samples of tldr, truthfulqa and real_toxicity; some cells are missing."""
    summaries, answers, toxic = [], [], []
    for number, model in product(range(2), PAPER_MODELS):
        sample = "The sea is large" if model.startswith("gpt") else "The sea is wide"
        context, reference = f"{number} sea\n\nTL;DR:", "Seas are wide, very wide."
        summaries.append({"model_type": model, "context": context, "ref_text": reference, "sample": sample})
        for kind, prompt in enumerate(("QA prompt", "QA + instruction", "instruction prompt")):
            info = None if (number, kind, model) == (1, 0, "sft-xl") else (0.5, 0.9)[kind == 2]
            names = {"model_type": model, "prompt_type": prompt, "adversarial": True}
            question = f'"What" {number}?'
            answers.append(names | {"question": question, "answer": "x", "true": (0.9, 0.2)[number], "info": info})
        for kind, prompt in enumerate(("basic prompt", "respectful prompt", "biased prompt")):
            missing = (number, kind, model) == (0, 1, "gpt-xl")
            sample, toxicity = (None, None) if missing else ("said, “so�", 0.1 + kind / 10 + number / 2)
            names = {"model_type": model, "prompt_type": prompt, "context": f"No {number}, and"}
            toxic.append(names | {"sample": sample, "toxicity": toxicity})
    return {"tldr": summaries, "truthfulqa": answers, "real_toxicity": toxic}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    for name, rows in (shot_samples() | other_samples()).items():
        pandas.DataFrame(rows).to_csv(folder / f"{name}_samples.csv")
    return folder


def measured(folder):
    """Return result rows by evaluation, metric, condition and model."""
    rows = json.loads((folder / "results.json").read_text())
    return {(row["evaluation"], row["metric"], row["condition"], row["model"]): row for row in rows}


@pytest.fixture(scope="module")
def found(files):
    names = ("squad", "drop", "wmt15", "tldr", "truthfulqa", "real_toxicity")
    line = ["evaluate", "all", "--completions", *(f"{name}={files / f'{name}_samples.csv'}" for name in names)]
    assert command([*line, "--out", str(files / "results.json")]) == 0
    return measured(files)


def test_rows_are_by_model_and_condition(found):
    for shots, model in product(SHOTS.values(), PAPER_MODELS):
        place = PAPER_MODELS.index(model) + 1
        row = found["squad", "f1", shots, model]
        assert row["n"] == 2
        first = 0.5 if place % 2 else 0.0  # wide, sea against wide, one: one word of two and two
        assert row["value"] == pytest.approx((first + (0.0 if place % 3 else 1.0)) / 2)
        # a missing number scores 0; 12 among three words, 13 among them: 2 * (1/4) / (1 + 1/4)
        assert found["drop", "f1", shots, model]["value"] == pytest.approx(
            mean(1.0 if n < place % 3 else 0.4 for n in range(2))
        )
    assert {condition for evaluation, _, condition, _ in found if evaluation == "wmt15"} == set(SHOTS.values())


def test_translations_and_summaries_match_the_libraries(found, files):
    french = pandas.read_csv(files / "wmt15_samples.csv")
    for shots, here in SHOTS.items():
        rows = french[(french.model_type == "gpt-6b") & (french.prompt_type == shots)]
        score = sacrebleu.corpus_bleu(list(rows["sample"]), [list(rows.ref_text)]).score
        assert found["wmt15", "bleu", here, "gpt-6b"]["value"] == pytest.approx(score)
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    said = rouge.score("Seas are wide, very wide.", "The sea is large")["rougeL"].fmeasure
    assert found["tldr", "rouge_l", "", "gpt-175b"]["value"] == pytest.approx(said)


def test_samples_without_a_number_are_counted(found):
    assert found["truthfulqa", "truthful", "qa", "sft-xl"]["n"] == 1
    assert found["truthfulqa", "unjudged", "qa", "sft-xl"]["value"] == 0.5
    assert found["truthfulqa", "truthful_and_informative", "instruction_qa", "ppo-noptx-6b"]["value"] == 0.5
    assert found["real_toxicity", "mean_toxicity", "respectful", "gpt-xl"]["value"] == pytest.approx(0.7)
    assert found["real_toxicity", "unscored", "respectful", "gpt-xl"]["value"] == 0.5
    assert found["real_toxicity", "mean_toxicity", "biased", "gpt-6b"]["value"] == pytest.approx(0.55)
    assert {condition for evaluation, _, condition, _ in found if evaluation == "real_toxicity"} == {
        "none",
        "respectful",
        "biased",
    }


def test_questions_about_a_passage_share_a_cluster(found):
    """A single passage gives no interval; two prompts give one."""
    assert found["squad", "f1", "zero_shot", "gpt-xl"]["low"] is None
    assert found["tldr", "rouge_l", "", "gpt-xl"]["low"] is not None


@pytest.mark.usefixtures("found")
def test_report_shows_the_papers_table_14(files):
    assert command(["report", str(files / "results.json")]) == 0
    text = (files / "results.html").read_text(encoding="utf-8")
    table = text[text.index('id="table-14"') :]
    head = table[: table.index("</tr>")]
    assert [head.index(model) for model in PAPER_MODELS] == sorted(head.index(model) for model in PAPER_MODELS)
    line = next(row for row in table.split("<tr") if "SQuADv2" in row and "no examples" in row)
    printed = [float(each) for each in PAPER_TABLE_14["squad", "f1", "zero_shot"].split()]
    assert [f"paper: {each:.0f}\u00a0%" in cell for each, cell in zip(printed, line.split("<td")[2:], strict=True)] == [
        True
    ] * 12


@pytest.mark.usefixtures("found")
def test_several_model_sizes_give_curves(files):
    """Every panel has three sizes on its axis, and the legend one entry per family."""
    assert command(["report", str(files / "results.json"), "--out", str(files / "sizes.html")]) == 0
    text = (files / "sizes.html").read_text(encoding="utf-8")
    for section, panels in (("tax-public", 7), ("toxicity", 3), ("truthfulness", 3)):
        drawn = text[text.index(f'id="{section}"') :].split("</section>")[0]
        assert [drawn.count(f">{size}</text>") for size in ("1.3B", "6B", "175B", "parameters")] == [panels] * 4
        legend = drawn[: drawn.index("</ul>")]
        assert [legend.count(f">{name}</li>") for name in ("gpt", "SFT", "ppo-noptx", "ppo-ptx")] == [1] * 4


def test_table_14_is_complete():
    assert {len(numbers.split()) for numbers in PAPER_TABLE_14.values()} == {12}


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-xl", ("gpt", 1.3e9)),
        ("ppo-ptx-175b", ("ppo-ptx", 175e9)),
        ("sft_125M", ("sft", 125e6)),
        ("a-1.3B", ("a", 1.3e9)),
        ("sft", None),
    ],
)
def test_model_sizes_are_parsed_from_names(model, family):
    assert parse_model_size(model) == family


def test_single_sizes_form_no_family():
    assert group_by_family(["llama-7b", "pythia-6.9b"]) == {}
    assert list(group_by_family(["llama-7b", "pythia-6.9b", "llama-1b"])["llama"]) == [
        (1e9, "llama-1b"),
        (7e9, "llama-7b"),
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["squad", "--completions", "drop=DROP"], "drop is not among the requested evaluations"),
        (["squad", "drop", "--completions", "drop=DROP"], "no completions for squad; give --completions squad=FILE"),
        (["all", "--completions", "DROP"], "no completions for all; give --completions NAME=FILE"),
        (["squad", "--completions", "nowhere.csv"], "--completions nowhere.csv: no such file or folder"),
        (["squad", "--completions", "CUT"], "is the file truncated?"),
    ],
)
def test_invalid_files_are_reported_in_one_line(files, tmp_path, capsys, words, complaint):
    (tmp_path / "cut.csv").write_text('a,sample,ref_text\n1,"x, y",z\n2,"x\n')
    places = {"DROP": files / "drop_samples.csv", "CUT": tmp_path / "cut.csv"}
    for name, place in places.items():
        words = [word.replace(name, str(place)) for word in words]
    assert command(["evaluate", *words, "--out", str(tmp_path / "none.json")]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
