"""Keys' use cases against the owner's policy: over HTTP, in the list of models, and in model cards."""

import json

import openai
import pytest
from support.endpoint import serving
from support.serving import run_endpoint, run_upstream

from instructgpt.cli import run_command
from instructgpt.errors import InputError
from instructgpt.run.lineage import content_hash
from instructgpt.run.use_policy import HIGH_STAKES_DOMAINS, UsePolicy, find_high_stakes_domain, replace_use_policy
from instructgpt.serve.app import EndpointState
from instructgpt.serve.gate import Gate
from instructgpt.serve.guard.checking import GuardSet
from instructgpt.serve.guard.counts import read_guard_counts
from instructgpt.serve.guard.settings import read_guard_file
from instructgpt.serve.keys import KeyFile, add_key, remove_key

USER = [{"role": "user", "content": "Where is Seoul?"}]
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "In Korea."}, "finish_reason": "stop"}],
}


@pytest.mark.parametrize(
    ("use_case", "domain"),
    [
        ("Medical_Diagnosis", "medical diagnosis"),
        ("symptom checker", "medical diagnosis"),
        ("reads symptoms", "medical diagnosis"),
        ("credit-scoring", "credit"),
        ("Loans", "credit"),
        ("political  advertising", "political advertising"),
        ("help for the police", "law enforcement"),
        ("Hiring", "employment"),
        ("accredited courses", None),
        ("customer support", None),
        ("", None),
    ],
)
def test_high_stakes_domains(use_case, domain):
    assert find_high_stakes_domain(use_case) == domain
    assert UsePolicy().decide(use_case) == ("allowed" if domain is None else "refused")


def test_the_papers_domains_are_refused_unless_they_are_listed():
    for domain in HIGH_STAKES_DOMAINS:
        assert UsePolicy("allowed").decide(domain) == "refused"
        policy = UsePolicy.from_yaml({"use_cases": {domain.upper(): "allowed"}}, "here")
        assert policy.decide(domain) == "allowed"
        assert domain not in policy.describe()["refused"]
        assert domain in policy.describe()["allowed"]
    policy = UsePolicy.from_yaml(
        {"unlisted": "refused", "use_cases": {"credit": "needs a person", "chat": "allowed"}}, "x"
    )
    decisions = {
        name: policy.decide(name) for name in ("chat", "Chat", "credit scoring", "law enforcement", "", "poems")
    }
    assert decisions == {
        "chat": "allowed", "Chat": "allowed", "credit scoring": "needs a person", "law enforcement": "refused",
        "": "refused", "poems": "refused",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ([], "expected 'unlisted' and 'use_cases'"),
        ({"usecases": {}}, "unknown 'usecases'"),
        ({"use_cases": ["chat"]}, "expected lines"),
        ({"use_cases": {"chat": "maybe"}}, "'maybe': expected allowed, refused, needs a person"),
        ({"unlisted": True}, "'True': expected allowed"),
        ({"use_cases": {"a b": "allowed", "A-B": "refused"}}, "listed twice"),
        ({"use_cases": {"!": "allowed"}}, "no letters"),
    ],
)
def test_what_is_no_policy_is_refused(section, words):
    with pytest.raises(InputError, match=words):
        UsePolicy.from_yaml(section, "guard.yaml")


def ask(url, key):
    """Return the answer's text, or the code of the error."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        try:
            return client.chat.completions.create(model="m", messages=USER, max_tokens=4).choices[0].message.content
        except openai.APIStatusError as error:
            return error.code


def test_keys_by_their_use_case(tmp_path, capsys):
    keys = tmp_path / "keys.jsonl"
    cases = {"chat": "chat", "forms": "hiring letters", "doctor": "medical diagnosis", "none": ""}
    values = {name: add_key(keys, name, "ann", use_case, False) for name, use_case in cases.items()}
    guard_file = tmp_path / "guard.yaml"
    policy = {"unlisted": "refused", "use_cases": {"chat": "allowed", "hiring letters": "needs a person"}}
    guard_file.write_text(json.dumps({"policy": policy}))
    guards = GuardSet.load(read_guard_file(guard_file))
    state = EndpointState(gate=Gate(KeyFile(keys)), guards=guards)
    with serving(lambda *_: ANSWER) as behind, run_upstream(behind.url.removesuffix("/v1"), state) as front:
        answers = {name: ask(front.url, key) for name, key in values.items()}
        assert answers == {
            "chat": "In Korea.", "forms": "use_case_needs_approval", "doctor": "use_case_refused",
            "none": "use_case_refused",
        }  # fmt: skip
        assert len(behind.payloads) == 1
        command = ["serve", "keys", "approve", "--keys", str(keys), "--name", "forms", "--approved-by", "Kim"]
        assert run_command(command) == 0
        assert ask(front.url, values["forms"]) == "In Korea."  # from the next request on
        remove_key(keys, "forms")
        assert ask(front.url, values["forms"]) == "invalid_api_key"
    rows = {row["use_case"]: row["blocked"] for row in read_guard_counts(guards.settings.counts_path)}
    assert rows == {"": 1, "hiring letters": 1, "medical diagnosis": 1}
    capsys.readouterr()
    assert run_command(["serve", "guard", "counts", "--guard", str(guard_file)]) == 0
    assert "\tpolicy\tprompt\thiring letters\t1\t1\t1\t0" in capsys.readouterr().out


def test_a_server_without_a_policy_refuses_high_stakes_domains(tmp_path):
    keys = tmp_path / "keys.jsonl"
    chat, doctor = (add_key(keys, name, "ann", name, False) for name in ("chat", "medical diagnosis"))
    state = EndpointState(gate=Gate(KeyFile(keys)))
    with serving(lambda *_: ANSWER) as behind, run_upstream(behind.url.removesuffix("/v1"), state) as front:
        assert (ask(front.url, chat), ask(front.url, doctor)) == ("In Korea.", "use_case_refused")


def test_models_tell_their_policy(save, tmp_path):
    (tmp_path / "words.txt").write_text("lock\n")
    guard = {"name": "locks", "scorer": "words:words.txt", "reads": "prompt"}
    policy = {"unlisted": "refused", "use_cases": {"chat": "allowed", "credit": "allowed"}}
    (tmp_path / "guard.yaml").write_text(json.dumps({"policy": policy, "guards": [guard]}))
    state = EndpointState(guards=GuardSet.load(read_guard_file(tmp_path / "guard.yaml")))
    with run_endpoint({"policy": save("llama")}) as behind, run_upstream(behind.url, state) as front:
        plain = behind.client.get("/v1/models").json()["data"][0]
        assert plain["policy"]["refused"] == list(HIGH_STAKES_DOMAINS)
        assert (plain["policy"]["unlisted"], plain["guards"]) == ("allowed", [])
        with openai.OpenAI(base_url=f"{front.url}/v1", api_key="none") as client:
            for model in (next(iter(client.models.list())), client.models.retrieve("policy")):
                assert (model.id, model.max_model_len) == ("policy", plain["max_model_len"])
                assert model.policy["allowed"] == ["credit", "chat"]
                assert "credit" not in model.policy["refused"]
                assert model.guards == [
                    {"name": "locks", "reads": "prompt", "threshold": "at least 1", "action": "block"}
                ]
        assert front.client.get("/v1/models/none").status_code == 404


def test_the_policy_in_model_cards(save, tmp_path, capsys):
    folder = save("llama", "chat")
    before = content_hash(folder)
    for decision in ("refused", "allowed"):
        (tmp_path / "guard.yaml").write_text(json.dumps({"policy": {"use_cases": {"law enforcement": decision}}}))
        assert (
            run_command(["serve", "guard", "card", "--guard", str(tmp_path / "guard.yaml"), "--model", str(folder)])
            == 0
        )
        card = (folder / "README.md").read_text()
        assert card.count("## Use policy") == 1
        assert f"| law enforcement | {decision} |" in card
        assert "| credit | refused |" in card
    assert content_hash(folder) == before
    assert replace_use_policy("# Mine\n\nMy words.\n", UsePolicy()).startswith("# Mine\n\nMy words.\n")
    capsys.readouterr()
    assert (
        run_command(["serve", "guard", "card", "--guard", str(tmp_path / "guard.yaml"), "--model", str(tmp_path)]) == 2
    )
    assert "not a model directory" in capsys.readouterr().err
