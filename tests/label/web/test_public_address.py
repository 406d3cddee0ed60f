"""A site behind a reverse proxy: hosts, sub paths, links, redirects and cookies, also through Debian's nginx."""

from __future__ import annotations

import re
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from support.browser import LETTERS, Server, add_batch, add_ranking, browser, free_port, watched  # noqa: F401
from support.commands import run_in_process
from support.proxy import nginx
from support.site import ORIGIN, add_person, client_of, make_site

from instructgpt.errors import InputError
from instructgpt.label.auth.passwords import hash_password
from instructgpt.label.web.app import create_app
from instructgpt.label.web.public_address import prefix_links

DATABASES = ("sqlite",)
PASSWORD = "a quiet evening by the sea"
LINK = re.compile(r"""(?:href|src|action|formaction|data-done)=["'](/[^"']*)["']""")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("labels.example.org", 200),
        ("LABELS.example.org", 200),
        ("labels.example.org:443", 200),
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("evil.example", 400),
        ("labels.example.org.evil.example", 400),
        ("labels.example.org:8443", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ],
)
@pytest.mark.parametrize("path", ["/sign-in", "/api/v1/healthz", "/static/site.css"])
def test_other_hosts_are_refused_once_the_public_one_is_known(tmp_path, host, status, path):
    site = make_site(tmp_path, public_url="https://labels.example.org")
    answer = client_of(site).get(path, headers={"Host": host})
    assert answer.status_code == status
    assert "content-security-policy" in answer.headers
    if status == 400:
        assert "https://labels.example.org" in answer.json()["message"]
    site.database.close()


def test_every_host_is_answered_without_a_public_address(site):
    assert client_of(site).get("/sign-in", headers={"Host": "anything.example"}).status_code == 200


@pytest.mark.parametrize("prefix", ["/label", ""], ids=["kept by the proxy", "removed by the proxy"])
def test_links_redirects_and_cookies_stay_below_the_sub_path(tmp_path, prefix):
    site = make_site(tmp_path, public_url="https://example.org/label")
    add_person(site, "olga", "owner", password_hash=hash_password(PASSWORD))
    with client_of(site) as client:
        page = client.get(f"{prefix}/sign-in")
        links = LINK.findall(page.text)
        assert links
        assert all(link.startswith("/label/") for link in links), links
        assert client.get(f"{prefix}/").headers["location"] == "/label/sign-in"
        answer = client.post(f"{prefix}/sign-in", data={"name": "olga", "password": PASSWORD, "next": "/people"})
        assert answer.headers["location"] == "/label/people"
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith("__Secure-labeler_session=")
        assert {"path=/label", "secure", "httponly"} <= {part.strip().lower() for part in cookie.split(";")}
        chosen = client.post(f"{prefix}/look", data={"language": "ko", "back": "/people"})
        assert "Path=/label;" in chosen.headers["set-cookie"] + ";"
        assert client.get(f"{prefix}/api/v1/healthz").json() == {"status": "ok"}
        assert "max-age" not in client.get(f"{prefix}/static/site.css").headers.get("cache-control", "")
        assert client.get(f"{prefix}/labels").status_code == 404
    site.database.close()


def test_texts_are_not_taken_for_links(tmp_path):
    site = make_site(tmp_path, public_url="https://example.org/label")
    add_ranking(site, 'Explain href="/x" and <a href="/y">', ["one", "two"])
    with client_of(site, add_person(site)) as client:
        task = client.post("/label/api/v1/tasks/claim").json()
        page = client.get(f"/label/tasks/{task['assignment']}?show=true").text
    assert "/label/x" not in page
    assert "/label/y" not in page
    assert prefix_links('<a href="//other.example/">', "/label") == '<a href="//other.example/">'
    site.database.close()


@pytest.mark.parametrize("path", ["/people", "/static/x", "/api"])
def test_a_sub_path_that_is_one_of_the_sites_pages_is_refused(tmp_path, path):
    site = make_site(tmp_path, public_url=f"https://example.org{path}")
    with pytest.raises(InputError, match="choose another sub path"):
        create_app(site)
    site.database.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://example.org/a b", "expected https://HOST"),
        ("https://example.org/../etc", "expected https://HOST"),
        ("https://example.org/a?b=c", "expected https://HOST"),
        ("ftp://example.org/", "expected https://HOST"),
    ],
)
def test_malformed_public_addresses_are_refused(capsys, monkeypatch, tmp_path, address, message):
    monkeypatch.chdir(tmp_path)
    outcome = run_in_process(capsys)("label", "init", "--site", "site", "--public-url", address)
    assert outcome.code == 2
    assert message in outcome.err


def test_the_setup_link_has_the_sub_path(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = run_in_process(capsys)(
        "label", "init", "--site", "site", "--public-url", "https://example.org/team/label/"
    )
    assert "https://example.org/team/label/invite/" in outcome.out


@pytest.fixture(params=["kept", "removed"])
def proxied(request, tmp_path):
    """(address below a sub path of a real nginx, its site): the proxy keeps the sub path, or removes it."""
    port, upstream = free_port(), free_port()
    site = make_site(tmp_path / "site", public_url=f"http://127.0.0.1:{port}/team/label")
    server = Server(site, upstream)
    server.start()
    target = f"http://127.0.0.1:{upstream}" + ("/" if request.param == "removed" else "")
    try:
        with nginx(tmp_path / "nginx", port, "/team/label/", target) as host:
            yield f"{host}/team/label", site
    finally:
        server.stop()
        site.database.close()


def test_a_ranking_through_nginx_below_a_sub_path(proxied, browser, watched):  # noqa: F811
    address, site = proxied
    add_person(site, "ada", password_hash=hash_password(PASSWORD))
    add_ranking(site, "Say something good.", [f"Completion {number}" for number in range(4)])
    context = browser.new_context()
    watched.watch(context, address)
    page = context.new_page()
    page.goto(f"{address}/")
    page.wait_for_url(f"{address}/sign-in")
    page.fill("[name=name]", "ada")
    page.fill("[name=password]", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url(f"{address}/home")
    page.locator("form:has(input[value=rank]) button").click()
    page.wait_for_selector("form[data-ready]")
    page.locator("button.stage[data-stage=rank]").click()
    for number, letter in enumerate(LETTERS[:4], 1):
        page.keyboard.press(letter.lower())
        page.keyboard.press(str(number))
    page.keyboard.press("Control+Enter")
    page.wait_for_url(f"{address}/tasks/*/done")
    assert page.locator("#stored .order").inner_text() == "A > B > C > D"
    assert {cookie["path"] for cookie in context.cookies()} == {"/team/label"}


def test_every_link_of_an_owner_through_nginx_leads_somewhere(proxied):
    address, site = proxied
    add_person(site, "olga", "owner", password_hash=hash_password(PASSWORD))
    add_batch(site, "demonstrate", ["Write a poem"])
    with httpx.Client(headers=ORIGIN, follow_redirects=True, timeout=60) as client:
        page = client.post(f"{address}/sign-in", data={"name": "olga", "password": PASSWORD})
        assert str(page.url) == f"{address}/overview"
        waiting, seen = [str(page.url)], set()
        while waiting and len(seen) < 40:
            at = waiting.pop()
            seen.add(at)
            answer = client.get(at)
            assert answer.status_code == 200, at
            for link in re.findall(r'href="([^"#?]+)["#?]', answer.text):
                target = urljoin(at, link)
                assert target.startswith(address), f"{link} on {at} leaves the sub path"
                if target not in seen and not urlsplit(target).path.endswith(("/account/data", "/backup")):
                    waiting.append(target)
    assert len(seen) > 12
