"""Nothing that a labeler's browser gets predicts which model wrote a completion.

Thirty tasks of four models with texts of one length; everything in pages, JSON and headers that goes with a completion
is sorted, and the place of each model in that order must look random (chi-square, Holm over all tries).
"""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from uuid import UUID

import pytest
from scipy.stats import chisquare
from support.site import add_person, client_of

from instructgpt.label.db.models import base
from instructgpt.label.tasks import assignments
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open
from instructgpt.records import Completion

DATABASES = ("sqlite",)
MODELS = ("base", "sft", "ppo", "ppo-ptx")
PLAIN = OverlapPolicy(overlap=1, cohort_share=0, gold_share=0, repeat_share=0)
SIGNIFICANCE = 0.01


def batch_files(order: str, tasks: int) -> tuple[list[Completion], dict[str, str]]:
    """Completions as `sample` writes them, one file a model or prompt by prompt, and the model of each text."""
    words = random.Random(5)
    texts = {
        (number, model): f"{words.getrandbits(64):016x}{words.getrandbits(64):016x}"
        for number in range(tasks)
        for model in MODELS
    }
    pairs = sorted(texts, key=lambda pair: (MODELS.index(pair[1]), pair[0]) if order == "files" else pair[0])
    completions = [
        Completion(prompt=f"Write the code {number:02}", completion=texts[number, model], model=model)
        for number, model in pairs
    ]
    return completions, {text: model for (_, model), text in texts.items()}


def html_sequences(html: str, texts: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Return the values that go with each completion of a page, by the attribute that holds them: (value, model)."""
    sections = re.split(r'(?=<section class="panel rate")', html)[1:]
    found = defaultdict(list)
    for place, section in enumerate(sections):
        section = section.partition("</section>")[0]
        model = next(texts[text] for text in re.findall(r"[0-9a-f]{32}", section) if text in texts)
        found["place"].append((f"{place:02}", model))
        for number, (name, value) in enumerate(re.findall(r'([\w-]+)="([^"]*)"', section)):
            found[f"{name} {number}"].append((value, model))
    return found


def json_sequences(task: dict, texts: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    found = defaultdict(list)
    for place, completion in enumerate(task["completions"]):
        model = texts[completion["text"]]
        found["json place"].append((f"{place:02}", model))
        found["json keys"].append((json.dumps(list(completion)), model))
        for name, value in completion.items():
            if name != "text":
                found[f"json {name}"].append((json.dumps(value), model))
                found[f"json {name} reversed"].append((json.dumps(value)[::-1], model))
    return found


def sequences_of(task: dict, page: str, texts: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    # The assignment's id is on the page: an order derived from it would give the order of the file away.
    seeded = list(range(len(MODELS)))
    random.Random(task["assignment"]).shuffle(seeded)
    shown = [texts[completion["text"]] for completion in task["completions"]]
    unshuffled = [(f"{place:02}", shown[seeded.index(place)]) for place in range(len(MODELS))]
    return html_sequences(page, texts) | json_sequences(task, texts) | {"unshuffled": unshuffled}


def count_places(table: dict[str, list[int]], values: list[tuple[str, str]]) -> None:
    if len({value for value, _ in values}) == len(MODELS):
        for place, (_, model) in enumerate(sorted(values)):
            table[model][place] += 1


@pytest.mark.parametrize("order", ["files", "prompts"])
def test_nothing_sorted_predicts_the_model(site, order, monkeypatch):
    source = random.Random(3)  # in place of the system's randomness: the test gives the same answer every time
    monkeypatch.setattr(base, "uuid4", lambda: UUID(int=source.getrandbits(128), version=4), raising=False)
    monkeypatch.setattr(assignments, "SystemRandom", lambda: random.Random(source.getrandbits(64)), raising=False)
    completions, texts = batch_files(order, tasks=30)
    with site.database.write() as db:
        mark_batch_open(db, create_batch_with_tasks(db, "b", "rank", "training", [], completions, PLAIN))
    places = defaultdict(lambda: {model: [0] * len(MODELS) for model in MODELS})
    headers = set()
    with client_of(site, add_person(site)) as browser:
        for _ in range(30):
            answer = browser.post("/api/v1/tasks/claim")
            task = answer.json()
            page = browser.get(f"/tasks/{task['assignment']}")
            for name, values in sequences_of(task, page.text, texts).items():
                count_places(places[name], values)
            headers |= {(name, value) for name, value in page.headers.items() if name != "content-length"}
            assert not any(model in f"{page.text}{answer.text}{page.headers}" for model in ("ppo-ptx", "sft"))
            form = {"ratings": [], "tiers": [[each["id"]] for each in task["completions"]]}
            done = browser.post(
                f"/api/v1/assignments/{task['assignment']}/submit", json=form, headers={"Idempotency-Key": "k"}
            )
            assert done.status_code == 200
            assert "tiers" not in done.json()
    assert {"json id", "data-id 1", "unshuffled"} <= set(places)
    p_values = sorted(
        (chisquare(counts).pvalue, name, model)
        for name, table in places.items()
        for model, counts in table.items()
        if sum(counts)
    )
    smallest, *who = p_values[0]
    assert smallest * len(p_values) > SIGNIFICANCE, f"{who} tells the model: {places[who[0]]}"
    assert len({name for name, _ in headers}) == len(headers), "headers are the same on every page"
