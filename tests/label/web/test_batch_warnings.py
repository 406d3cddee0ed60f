"""The box "Please look" of a batch: what is allowed and rarely meant.

Run: python -m pytest tests/label/web/test_batch_warnings.py
"""

from __future__ import annotations

import html
import json

import pytest
from support.site import add_person, client_of, make_site

BOTH = [("ada", "training"), ("hal", "heldout")]


def completions(prompts: int, with_baseline: int) -> str:
    rows = []
    for number in range(prompts):
        models = ["x", "y", *(["base"] if number < with_baseline else [])]
        rows += [{"prompt": f"p{number}", "completion": f"{model} {number}", "model": model} for model in models]
    return "".join(json.dumps(row) + "\n" for row in rows)


def warnings_of(page: str) -> list[str]:
    if 'id="warnings"' not in page:
        return []
    box = page[page.index('id="warnings"') :].split("</section>")[0]
    return [html.unescape(item.split("</li>")[0]) for item in box.split("<li>")[1:]]


@pytest.mark.parametrize(
    ("people", "fields", "expected"),
    [
        ([("ada", "training")], {}, []),
        ([], {}, ["Nobody may work"]),
        ([("hal", "heldout")], {}, ["Nobody may work", "Held-out labelers (1) get none"]),
        (BOTH, {}, ["Held-out labelers (1) get none"]),
        (BOTH, {"cohort": "training"}, []),
        ([("ada", "training")], {"overlap": "2", "cohort_overlap": "2"}, ["need 2 labelers, and only 1"]),
        ([("ada", "training")], {"cohort_share": "50"}, ["need 3 labelers, and only 1"]),
        (BOTH, {"purpose": "evaluation"}, ["Both cohorts share these tasks"]),
        (BOTH, {"purpose": "evaluation", "cohort": "heldout"}, []),
        (
            BOTH,
            {"purpose": "evaluation", "cohort": "heldout", "baseline": "base"},
            ["missing in 11 of 12 prompts"],
        ),
    ],
)
def test_batches_say_what_is_rarely_meant(tmp_path, people, fields, expected):
    site = make_site(tmp_path)
    for name, cohort in people:
        add_person(site, name, cohort=cohort)
    owner = client_of(site, add_person(site, "olga", role="owner"))
    values = {"name": "b", "kind": "rank", "purpose": "training", "cohort_share": "0", "k_least": "2", **fields}
    files = {"completions": ("c.jsonl", completions(12, 1))}
    preview = owner.post("/batches/preview", data=values, files=files)
    assert preview.status_code == 200, preview.text
    made = owner.post("/batches", data=values, files=files)
    for page in (preview.text, owner.get(made.headers["location"]).text):
        found = warnings_of(page)
        assert len(found) == len(expected), found
        assert all(part in line for part, line in zip(expected, found, strict=True)), found
    site.database.close()
