"""The account page in every state of a person, and while the same account is changed from other windows."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import get_args

import pytest
from sqlalchemy import select, text
from support.site import add_person, client_of, make_site

from instructgpt.label.auth.dependencies import SESSION_COOKIE
from instructgpt.label.db.models import GroupDeclaration, LabelerGroup, Person, ProviderIdentity, UserSession
from instructgpt.label.db.models.people import PERSON_STATUSES, PersonRole
from instructgpt.label.people import groups

WINDOWS, ROUNDS = 4, 6


@pytest.fixture
def owner(site):
    return add_person(site, "olga", role="owner")


@pytest.fixture
def group_ids(site, owner):
    with site.database.write() as db:
        return [group.id for group in groups.set_groups(db, ["North", "South"], owner.id)]


def test_every_state_has_its_page(site, owner, group_ids):
    """Role, status, language, password or provider, group: none of them is left without a page."""
    with site.database.write() as db:
        groups.set_groups(db, ["South"], owner.id)  # North is declared below, and not offered any more
    client = client_of(site, owner)
    for number, (role, status) in enumerate(itertools.product(get_args(PersonRole), PERSON_STATUSES)):
        language = ("en", "ko")[number % 2]
        person = add_person(site, f"{role}-{status}", role=role, status=status, language=language, theme="dark")
        with site.database.write() as db:
            if number % 3:
                db.get_one(Person, person.id).password_hash = "not a hash"
            else:
                db.add(ProviderIdentity(issuer="https://idp", subject=person.name, person_id=person.id))
            if role == "labeler":
                db.add(GroupDeclaration(person_id=person.id, group_id=group_ids[number % 2]))
            token_hash = hashlib.sha256(person.name.encode()).hexdigest()
            db.add(UserSession(token_hash=token_hash, csrf="x", person_id=person.id, agent="\x07" * 300))
        client.cookies.set(SESSION_COOKIE, person.name)
        page = client.get("/account")
        assert page.status_code == 200, (role, status)
        assert f'lang="{language}"' in page.text
        assert ("North" in page.text, ">South<" in page.text) == (False, role == "labeler")
        assert ('name="old"' in page.text) == bool(number % 3)
        assert ('action="/account/withdraw"' in page.text) == (role == "labeler" and status != "withdrawn")
        assert not re.search(r"\b[a-z_]+\.[a-z]+_[a-z_]+\b", re.sub(r"<[^>]*>", "", page.text)), "an untranslated key"


def test_one_account_changed_from_many_windows(site, group_ids):
    """No request fails, and what is stored is what one of the windows sent last."""
    ada = add_person(site, "ada")
    client = client_of(site, ada)
    with site.database.write() as db:
        db.add_all(
            UserSession(id=f"s{number}", token_hash=f"h{number}", csrf="x", person_id=ada.id)
            for number in range(WINDOWS * ROUNDS)
        )

    def use(window):
        statuses = []
        for number in range(window, WINDOWS * ROUNDS, WINDOWS):
            forms = {
                "group": {"group": (*group_ids, "")[number % 3]},
                "preferences": {"language": ("en", "ko")[number % 2], "theme": "dark"},
                "password": {"password": "x", "again": "y", "old": "z"},
                f"sign-ins/s{number}/end": {},
            }
            statuses += [client.post(f"/account/{name}", data=form).status_code for name, form in forms.items()]
            statuses += [client.get(path).status_code for path in ("/account", "/account/data")]
        return statuses

    client.get("/account")
    with ThreadPoolExecutor(WINDOWS) as pool:
        statuses = [status for window in pool.map(use, range(WINDOWS)) for status in window]
    assert set(statuses) == {200, 303, 422}
    page = client.get("/account").text
    with site.database.read() as db:
        declared = db.scalars(select(GroupDeclaration.group_id).where(GroupDeclaration.person_id == ada.id)).all()
        assert len(declared) <= 1
        assert len(db.scalars(select(UserSession).where(UserSession.revoked_at.is_(None))).all()) == 1
    assert [value in declared for value in group_ids] == [f'value="{value}" selected' in page for value in group_ids]


def test_the_same_row_from_two_windows_is_a_conflict(postgres_url, tmp_path):
    """PostgreSQL lets both insert; the second waits for the first, and cannot know before."""
    site = make_site(tmp_path, postgres_url)
    owner = client_of(site, add_person(site, "olga", role="owner"))
    try:
        with ThreadPoolExecutor(1) as pool:
            with site.database.write() as db:
                db.add(LabelerGroup(name="North", position=0))
                db.flush()
                answer = pool.submit(owner.post, "/whose-preferences/groups", data={"names": "North"})
                wait_for_lock(site)
            assert answer.result(20).status_code == 409
    finally:
        site.database.close()


def wait_for_lock(site):
    statement = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    for _ in range(500):
        with site.database.read() as db:
            if db.scalar(statement):
                return
        time.sleep(0.01)
    raise AssertionError("nothing waits for the lock")
