"""Who may ask what: tokens, cookies, hosts, origins."""

import pytest

from musicldm.app import Options
from tests.app.helpers import QUICK, made

ONE, OTHER = "a-token-of-one", "a-token-of-another"


@pytest.fixture(scope="module")
def guarded(options, run):
    with run(options(tokens=(ONE, OTHER))) as server:
        yield server


def bearer(token: str) -> dict:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("headers", [{}, bearer("wrong-token"), bearer(""), {"Authorization": "Basic abc"},
                                     {"Cookie": "musicldm=wrong"}, {"Cookie": "musicldm"}])  # fmt: skip
def test_without_the_token_nothing_is_told(guarded, headers):
    for path in ("/v1/models", "/v1/results", "/metrics", "/docs", "/openapi.json"):
        answer = guarded.get(path, headers=headers)
        assert answer.status_code == 401
        assert "needs a token" in answer.json()["detail"]
    assert guarded.post("/v1/generations", json=QUICK, headers=headers).status_code == 401
    assert guarded.get("/health", headers=headers).status_code == 200


def test_the_page_trades_the_token_for_a_cookie(guarded):
    assert guarded.get("/").status_code == 200
    assert guarded.post("/v1/session", json={"token": "wrong-token"}).status_code == 401
    answer = guarded.post("/v1/session", json={"token": ONE})
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert guarded.get("/v1/models").status_code == 200  # the client kept the cookie
    guarded.cookies.clear()


def test_nothing_of_one_client_is_visible_to_another(guarded):
    guarded.headers.update(bearer(ONE))
    identity = made(guarded, prompt="secret song")["id"]
    assert len(guarded.get("/v1/results").json()) == 1
    guarded.headers.update(bearer(OTHER))
    assert guarded.get("/v1/results").json() == []
    for path in (f"/v1/jobs/{identity}", f"/v1/results/{identity}", f"/v1/results/{identity}/audio",
                 f"/v1/results/{identity}/recipe", f"/v1/results/{identity}/family"):  # fmt: skip
        assert guarded.get(path).status_code == 404
    assert guarded.patch(f"/v1/results/{identity}", json={"deleted": True}).status_code == 404
    assert guarded.delete(f"/v1/jobs/{identity}").status_code == 404
    edit = {"kind": "vary", "prompt": "mine", "source": identity}
    assert guarded.post("/v1/edits", json=edit).status_code == 404
    del guarded.headers["Authorization"]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "user@127.0.0.1", ""])
def test_other_names_of_this_address_are_refused(server, host):
    answer = server.get("/health", headers={"Host": host})
    assert answer.status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "[::1]:7860", "LOCALHOST:1"])
def test_its_own_names_are_served(server, host):
    assert server.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://[bad"])
def test_pages_of_other_sites_may_not_ask(server, origin):
    answer = server.post("/v1/generations", json=QUICK, headers={"Origin": origin})
    assert answer.status_code == 403


def test_its_own_page_and_programs_may_ask(server):
    assert server.get("/health", headers={"Origin": "http://127.0.0.1:7860"}).status_code == 200
    assert server.get("/health").status_code == 200


def test_further_names_are_served_when_they_are_given(options, run):
    with run(options(names=("studio.local",))) as server:
        assert server.get("/health", headers={"Host": "studio.local:7860"}).status_code == 200


def test_an_address_for_others_needs_a_token_or_a_word():
    with pytest.raises(ValueError, match="give a token with --token, or let everybody in with --no-token"):
        Options(host="0.0.0.0")
    with pytest.raises(ValueError, match="at least 8 characters"):
        Options(tokens=("short",))
    assert Options(host="0.0.0.0", open_to_all=True).host == "0.0.0.0"
    assert Options(host="0.0.0.0", tokens=(ONE,)).clients[ONE] != ONE
