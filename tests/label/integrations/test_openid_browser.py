"""Sign-in at an OpenID provider in Chromium: real redirects between two servers, cookies and all.

pytest tests/label/integrations/test_openid_browser.py
"""

from __future__ import annotations

from dataclasses import replace

from support.browser import Server, browser, free_port  # noqa: F401
from support.openid_provider import openid_provider
from support.site import add_person, make_site

from instructgpt.label.context import Site
from instructgpt.label.db.models import OpenIDFlow, Person, ProviderIdentity
from instructgpt.label.openid import OpenIDClient, OpenIDProvider
from instructgpt.label.outgoing import parse_network


def test_sign_in_at_a_provider(browser, tmp_path):  # noqa: F811
    """Somebody new becomes a labeler in screening; a known person lands on the page that was asked for."""
    plain, port = make_site(tmp_path), free_port()
    with openid_provider() as provider:
        settings = OpenIDProvider(provider.issuer, "site", "Example & Sons", ("example.org",))
        callback = f"http://127.0.0.1:{port}/sign-in/openid/callback"
        client = OpenIDClient(settings, callback, (parse_network("127.0.0.0/8"),))
        server = Server(Site(replace(plain.settings, openid=client), plain.database), port)
        server.start()
        try:
            page = browser.new_context().new_page()
            page.goto(f"{server.url}/sign-in")
            page.get_by_role("link", name="Example & Sons").click()
            page.wait_for_url(f"{server.url}/**")
            assert not page.url.startswith(provider.issuer)
            with server.site.database.read() as db:
                person = db.query(Person).one()
                assert (person.role, person.status) == ("labeler", "screening")
                assert not db.query(OpenIDFlow).count(), "a flow is for one sign-in"
            owner = add_person(server.site, "olga", role="owner")
            with server.site.database.write() as db:
                db.add(ProviderIdentity(issuer=provider.issuer, subject="olga-1", person_id=owner.id))
            provider.claims = {"sub": "olga-1"}
            page = browser.new_context().new_page()
            page.goto(f"{server.url}/people?sort=name")
            page.locator("main a[href*='/sign-in']").first.click()
            page.get_by_role("link", name="Example & Sons").click()
            page.wait_for_url(f"{server.url}/people?sort=name")
            assert page.locator("h1").inner_text()
            cookies = {each["name"]: each for each in page.context.cookies()}
            assert cookies["labeler_session"]["httpOnly"]
            other = browser.new_context().new_page()
            other.goto(f"{callback}?code=stolen&state=made-up")
            assert "labeler_session" not in {each["name"] for each in other.context.cookies()}
        finally:
            server.stop()
            plain.database.close()
