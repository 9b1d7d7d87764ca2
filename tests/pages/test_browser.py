"""The hub's pages in a real browser: each at four widths, light and dark; forms, live parts, hostile words."""

from __future__ import annotations

import re
import threading
import time
import zlib
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import httpx
import pytest
import uvicorn
from huggingface_hub import HfApi
from tests.browser import barriers, launched, opened, picture
from tests.identity_provider import Provider
from tests.pages.test_hostile import MARKDOWN, TEXTS
from tests.service.conftest import Actor
from tests.stitching.reports import crowded, report

from suture_contract.report.html import to_html

pytestmark = pytest.mark.server

#: Widths that pages are looked at with, light and dark.
WIDTHS = (390, 768, 1280, 1920)
PAGES = {
    "start": "/",
    "search": "/?search=digits&task=classification",
    "model": "/north/digits",
    "result": "/north/both",
    "gated": "/east/reader",
    "bare": "/north/protocols",
    "files": "/north/digits/tree/main",
    "file": "/north/digits/blob/main/suture.json",
    "card": "/north/digits/blob/main/README.md",
    "history": "/north/digits/commits/main",
    "party": "/north",
    "parties": "/-/parties",
    "jobs": "/-/jobs",
    "new": "/-/jobs/new?model=north/digits",
    "job": "/-/jobs/{at_work}",
    "queued": "/-/jobs/{queued}",
    "done": "/-/jobs/{done}",
    "report": "/-/jobs/{done}/report",
    "compare": "/-/compare?of=north/both&of=north/digits&of=south/digits&of={done}&of=nobody/x",
    "account": "/-/account",
    "admin": "/-/admin/north",
    "access": "/-/access",
    "audit": "/-/audit",
    "api": "/docs",
    "missing": "/nobody/nothing",
}


@pytest.fixture(scope="module")
def browser():
    with launched() as running:
        yield running


@contextmanager
def served(app):
    """An application on a real socket; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def live(hub):
    """The filled hub on a real socket."""
    with served(hub.app) as hub.address:
        yield hub


@pytest.fixture(scope="module")
def north(live):
    with httpx.Client(base_url=live.address, timeout=60) as client:
        yield Actor(client, live.people["north"].token)


@pytest.fixture(scope="module")
def signed_in(browser, live):
    """The cookies of a browser that signed in as people do."""
    with opened(browser, live.address) as page:
        page.goto("/-/jobs?state=failed")
        assert page.title() == "Sign in · Suture"
        page.fill("#token", "suture_party_wrong")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("alert").wait_for()
        page.get_by_label("Token of your party").fill(live.people["north"].token)
        page.keyboard.press("Enter")
        page.wait_for_url("**/-/jobs?state=failed")
        return page.context.storage_state()


#: What of a page's tables lies beyond their frames, to be found by scrolling alone; drawings and code may.
_OUT_OF_SIGHT = """[...document.querySelectorAll(".scroll:has(table.stack)")]
  .filter((frame) => frame.scrollWidth > frame.clientWidth).map((frame) => frame.ariaLabel)"""


#: In light and in dark; at which widths barriers are looked for in each. What is dark differs in its colours alone.
SCHEMES = {"light": (WIDTHS[0], WIDTHS[2]), "dark": (WIDTHS[2],)}


def test_pages_fit_and_can_be_read(browser, live, signed_in):
    wrong = {}
    with opened(browser, live.address, storage_state=signed_in) as page:
        for name, path in PAGES.items():
            page.goto(path.format(**{key: getattr(live, key) for key in ("at_work", "queued", "done")}))
            page.evaluate("Promise.all([...document.images].map((picture) => picture.decode()))")
            for part in page.locator("[hx-trigger=load][hx-swap=innerHTML]").all():
                part.get_by_role("link", name="Beside others", exact=True).wait_for()
            for scheme, width in product(SCHEMES, WIDTHS):
                page.emulate_media(color_scheme=scheme)
                page.set_viewport_size({"width": width, "height": 900})
                problems = barriers(page, colours=scheme == "dark") if width in SCHEMES[scheme] else []
                over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
                hidden = page.evaluate(_OUT_OF_SIGHT)
                picture(page, f"{name}-{width}-{scheme}")
                if problems or over > 0 or hidden:
                    wrong[name, width, scheme] = (over, problems, hidden)
    assert wrong == {}


#: What looks different to whom: party, pages, and a word that only this role sees.
ROLES = {
    "south": ("south", "Waits for you"),
    "reader": ("north", "Your jobs"),
    "operator": ("operators", "Models"),
}


@pytest.mark.parametrize("role", ROLES)
def test_nobody_is_kept_out_by_a_barrier(browser, live, role):
    party, word = ROLES[role]
    with opened(browser, live.address) as page:
        page.goto("/-/sign-in")
        assert barriers(page) == []
        page.get_by_label("Token of your party").fill(live.people[role].token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{live.address}/")
        assert word in page.inner_text("main")
        for path in ("/", "/-/access", f"/-/admin/{party}", "/-/parties", "/south/digits"):
            page.goto(path)
            page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
            assert barriers(page) == [], path
            picture(page, f"{role}{path.replace('/', '-')}")


def test_the_keyboard_reaches_everything(browser, live, signed_in):
    with opened(browser, live.address, storage_state=signed_in) as page:
        page.goto("/")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        reached = set()
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("(document.activeElement.innerText || document.activeElement.name || '').trim()"))
        assert {"Models", "Jobs", "Sign out", "search", "Search", "Narrow it down", "north/digits"} <= reached


def test_a_job_keeps_itself_up_to_date(browser, live, signed_in, north):
    job = north.post("/v1/jobs", _asked("live1")).json()
    with opened(browser, live.address, storage_state=signed_in) as page:
        page.goto(f"/-/jobs/{job['id']}")
        assert page.get_by_role("status").inner_text().startswith("queued")
        assert north.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
        page.get_by_role("status").get_by_text("cancelled").wait_for()
        assert page.get_by_role("button", name="Cancel this job").count() == 0


def test_a_form_is_checked_while_one_types_and_asks(browser, live, signed_in, north):
    with opened(browser, live.address, storage_state=signed_in) as page:
        page.goto("/-/jobs/new?model=north/digits")
        page.get_by_label("Dataset at your own site").fill("digits")
        page.get_by_text("Type names").click()
        page.get_by_label("More models, by name").press_sequentially("south/digit")
        page.get_by_text("did you mean").wait_for()
        page.get_by_label("More models, by name").fill("")
        page.get_by_label("Search for models to pick").press_sequentially("south")
        page.get_by_role("heading", name="with “south”").wait_for()
        page.get_by_role("list", name="Offered").get_by_label("south/digits").check()
        page.get_by_role("list", name="Picked").get_by_label("south/digits").wait_for()
        page.get_by_text("These can be stitched").wait_for()
        page.get_by_role("group", name="Measure it at").get_by_label("south").check()
        page.get_by_label("Name of the result").fill("typed")
        page.get_by_role("button", name="Ask").click()
        page.wait_for_url("**/-/jobs/job_*")
        job = north.get(f"/v1/jobs/{page.url.rpartition('/')[2]}").json()
        assert (job["publish_as"], job["evaluate_at"]) == ("north/typed", ["south"])
        page.get_by_role("button", name="Cancel this job").click()
        page.get_by_role("status").get_by_text("cancelled").wait_for()


#: As though a page began with a long text.
_LONG = """new MutationObserver(() => {
  if (document.body) document.body.style.paddingTop = "20000px";
}).observe(document, {childList: true, subtree: true})"""


def test_pages_work_without_script_and_on_paper(browser, live, signed_in):
    with opened(browser, live.address, java_script_enabled=False, storage_state=signed_in) as page:
        page.goto(f"/-/jobs/{live.at_work}")
        assert "fit stitches" in page.inner_text("main")
        page.goto("/")
        page.get_by_role("searchbox").fill("south")
        page.keyboard.press("Enter")
        page.wait_for_url("**search=south**")
        assert "south/digits" in page.inner_text("main")
    with opened(browser, live.address, storage_state=signed_in) as page:
        # Nobody scrolls to what is printed, however far down it is: it comes unseen.
        page.add_init_script(_LONG)
        page.goto("/north/digits")
        page.get_by_role("link", name="Beside others", exact=True).wait_for(state="attached")
        assert page.locator("img.network").evaluate("picture => picture.complete && picture.naturalWidth > 0")
    with opened(browser, live.address, storage_state=signed_in) as page:
        page.goto("/north/digits")
        page.emulate_media(media="print")
        assert not page.locator("header.bar").is_visible()
        assert page.locator(".prose").is_visible()
        for path in ("/", "/north/both", "/-/audit", "/-/admin/north"):
            page.goto(path)
            assert _last_line(page.pdf(prefer_css_page_size=True)) > 0.6, path
            assert not page.locator("input, select, button").filter(visible=True).all(), path
            folded = page.locator("details:not([open]):not(.screen):not(:has(> form)):not(form details)")
            assert folded.count() or path != "/north/both"
            for part in folded.all():
                assert part.locator(":scope > :not(summary)").first.is_visible()


_OVERLAPS = """() => {
  const boxes = [...document.querySelectorAll("svg.plot")].filter((plot) => plot.checkVisibility()).map((plot) =>
    [...plot.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]));
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom - 3 <= b.top || b.bottom - 3 <= a.top;
  return boxes.flatMap((texts) => texts.flatMap(([name, box], i) =>
    texts.slice(i + 1).filter(([, other]) => !apart(box, other)).map(([other]) => [name, other])));
}"""


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_a_report_is_read_on_telephones_and_on_paper(browser, width, scheme):
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
        page = context.new_page()
        page.set_content(to_html(crowded()))
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
        assert page.evaluate("document.querySelector('.matrix').scrollWidth") < width
        drawn = [plot.get_attribute("class") for plot in page.locator("svg.plot").all() if plot.is_visible()]
        assert drawn == ["plot narrow" if width < 640 else "plot wide"]
        assert page.evaluate(_OVERLAPS) == []
        assert barriers(page) == []
        picture(page, f"report-file-{width}-{scheme}")
        page.locator("figure summary").click()
        assert page.evaluate(_OVERLAPS) == []
        page.locator("figure summary").click()
        table = page.get_by_role("region", name="All candidates").locator("table")
        assert not table.is_visible()
        page.emulate_media(media="print", color_scheme="light")
        assert table.is_visible()
        visible = [plot.get_attribute("class") for plot in page.locator("svg.plot").all() if plot.is_visible()]
        assert visible == ["plot wide"] * 2


def _last_line(document: bytes) -> float:
    """Return how far down the last text of a document's first page stands, as a share of what can be printed on."""
    (number,) = re.findall(rb"/Type /Page\n.*?/Contents (\d+) 0 R", document, re.DOTALL)[:1]
    content = document[document.index(b"\n%b 0 obj" % number) :]
    drawn = zlib.decompress(content[content.index(b"stream\n") + 7 :])
    height, *_ = re.findall(rb"^187\.5 187\.5 \S+ (\S+) re", drawn, re.MULTILINE)
    scale, *_ = re.findall(rb"^(\S+) 0 0 \S+ 187\.5 187\.5 cm", drawn, re.MULTILINE)
    return max(float(y) for y in re.findall(rb"(\S+) Tm", drawn)) * float(scale) / float(height)


@pytest.mark.parametrize("made", [report, crowded])
def test_the_first_printed_page_is_full_and_nothing_stays_folded(browser, made):
    with browser.new_context() as context:
        page = context.new_page()
        page.set_content(to_html(made()))
        assert _last_line(page.pdf(prefer_css_page_size=True)) > 0.85
        page.emulate_media(media="print")
        # What reaches the paper's edge loses its frame there.
        right = "Math.max(...[...document.querySelectorAll('.card')].map((card) => card.getBoundingClientRect().right))"
        assert page.evaluate(f"{right} < document.documentElement.clientWidth")
        folded = page.locator("details:not([open])")
        assert folded.count() > 0
        for part in folded.all():
            assert part.locator(":scope > :not(summary)").first.is_visible()


def test_a_long_line_to_check_the_log_by_is_shown_whole(browser, live, signed_in):
    with opened(browser, live.address, storage_state=signed_in) as page:
        for width in (320, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            for noted in (f"{'9' * 18}:{'d' * 64}", "W" * 900):
                page.goto(f"/-/audit/verify?expect={noted}")
                field = page.get_by_label("What an earlier check printed")
                assert field.input_value() == noted
                assert field.evaluate("field => field.scrollWidth - field.clientWidth") <= 0
                assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def test_hostile_words_run_nothing(browser, live, signed_in, north):
    shown = [text for text in TEXTS if text.isprintable()]
    card, legible = "\n\n".join([*shown, *MARKDOWN]).encode(), shown[:4]
    from tests.service.conftest import metadata_of, model_bytes

    content = metadata_of(len(legible), labels=legible, description="\n".join(legible))
    answer = north.publish("north/hostile", model=model_bytes(len(legible)), metadata=content, card=card)
    assert answer.status_code == 201, answer.text
    files = [f"/north/hostile/blob/main/{name}" for name in ("README.md", "suture.json")]
    with opened(browser, live.address, storage_state=signed_in) as page:
        for path in ("/", "/north/hostile", *files):
            page.goto(path)
            assert "alert(1)" in page.inner_text("main")
            acting = "script, iframe, img:not(.network), style, form[action^='//']"
            assert page.locator("main").locator(acting).count() == 0
            assert page.title().endswith("· Suture")


def test_links_of_the_official_client_lead_to_pages(browser, live, signed_in, tmp_path):
    api = HfApi(endpoint=live.address, token=live.people["north"].token)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a\n", encoding="utf-8")
    repo = api.create_repo("north/linked")
    commit = api.upload_file(
        path_or_fileobj=b"---\nlicense: mit\n---\n# Linked\n", path_in_repo="README.md", repo_id="north/linked"
    )
    folder = api.upload_folder(repo_id="north/linked", folder_path=tmp_path, commit_message="Add notes")
    links = {
        str(repo): "north/linked",
        commit.commit_url: "README.md",
        folder.commit_url: "notes/a.txt",
        str(commit): "README.md",
        f"{live.address}/north/linked/blob/main/README.md": "Linked",
        f"{live.address}/north/linked/tree/main/notes": "a.txt",
    }
    with opened(browser, live.address, storage_state=signed_in) as page:
        for link, shown in links.items():
            assert link.startswith(live.address)
            answer = page.goto(link)
            assert answer.status == 200, link
            assert shown in page.inner_text("main"), link


def test_who_signs_out_is_out(browser, live):
    with opened(browser, live.address) as page:
        page.goto("/-/sign-in")
        page.get_by_label("Token of your party").fill(live.people["reader"].token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{live.address}/")
        (cookie,) = page.context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        page.get_by_role("button", name="Sign out").click()
        page.wait_for_url("**/-/sign-in")
        page.go_back()
        page.reload()
        assert page.title() == "Sign in · Suture"


def test_people_sign_in_at_the_identity_provider(browser, start):
    with Provider() as provider:
        world = start(oidc_issuer=provider.url, oidc_client_id=Provider.CLIENT)
        person = {"name": "ada", "subject": "user-1", "roles": ["requester"]}
        assert world.actor("north", "admin").post("/v1/parties/north/people", person).status_code == 201
        with served(world.client.app) as address, opened(browser, address, beside=provider.url) as page:
            page.goto("/-/jobs?state=failed")
            picture(page, "sign-in-provider")
            assert barriers(page) == []
            page.get_by_role("link", name="Sign in at 127.0.0.1").click()
            page.wait_for_url("**/-/jobs?state=failed")
            page.get_by_role("banner").get_by_role("link", name="north").click()
            assert "reader, requester" in page.inner_text("main")
            (cookie,) = page.context.cookies()
            assert (cookie["name"], cookie["sameSite"]) == ("suture", "Strict")
            page.get_by_role("main").get_by_role("button", name="Sign out").click()
            page.wait_for_url("**/-/sign-in")
            # Somebody whom no party knows.
            provider.claims = {"sub": "user-2"}
            page.get_by_role("link", name="Sign in at 127.0.0.1").click()
            page.get_by_text("no party here knows you").wait_for()


def test_people_read_that_the_identity_provider_is_away(browser, start):
    with Provider() as provider:
        world = start(oidc_issuer=provider.url, oidc_client_id=Provider.CLIENT)
        provider.down = True
        with served(world.client.app) as address, opened(browser, address) as page:
            page.goto("/-/sign-in/provider")
            page.get_by_text("identity provider does not answer").wait_for()


def test_who_belongs_to_several_parties_chooses_for_which_one_to_act(browser, start):
    with Provider() as provider:
        world = start(oidc_issuer=provider.url, oidc_client_id=Provider.CLIENT)
        for party, roles in (("north", ["requester"]), ("south", ["steward"])):
            person = {"name": "ada", "subject": "user-1", "roles": roles}
            assert world.actor(party, "admin").post(f"/v1/parties/{party}/people", person).status_code == 201
        with served(world.client.app) as address, opened(browser, address, beside=provider.url) as page:
            page.goto("/-/jobs/new")
            page.get_by_role("link", name="Sign in at 127.0.0.1").click()
            page.get_by_role("heading", name="As which party do you act?").wait_for()
            assert barriers(page) == []
            picture(page, "choose-party")
            page.get_by_role("link", name="Act as north").click()
            page.wait_for_url("**/-/jobs/new")
            assert page.get_by_text("You ask as north").is_visible()
            page.get_by_role("link", name="as another party").click()
            page.get_by_role("heading", name="Act as another party").wait_for()
            assert barriers(page) == []
            picture(page, "account-parties")
            page.get_by_role("link", name="Act as south").click()
            page.get_by_role("banner").get_by_role("link", name="south").wait_for()
            page.goto("/-/account")
            assert "reader, steward" in page.inner_text("main")
            assert page.get_by_role("link", name="Act as north").is_visible()
            # A party that is not let in is not offered.
            operator = world.actor("operators", "operator")
            assert operator.post("/v1/parties/north/suspend").status_code == 200
            page.reload()
            assert page.get_by_role("link", name="Act as").count() == 0


def _asked(name):
    models = [{"repo": "north/digits"}, {"repo": "south/digits"}]
    return {"models": models, "dataset": "digits", "evaluate_at": ["south"], "publish_as": name}


def test_screenshots_are_written_for_people(tmp_path, monkeypatch, browser, live):
    monkeypatch.setattr("tests.browser.SCREENSHOTS", str(tmp_path))
    with opened(browser, live.address) as page:
        page.goto("/-/sign-in")
        picture(page, "sign-in")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["sign-in.png"]


def test_a_flagged_ancestor_is_seen_at_once(browser, live, signed_in):
    """The last test: it withdraws a model that others look at."""
    with httpx.Client(base_url=live.address, timeout=60) as client:
        reason = {"reason": "trained on wrong labels"}
        path = "/v1/models/south/digits/revisions/latest/withdraw"
        assert Actor(client, live.people["south"].token).post(path, reason).status_code == 200
    for size, scheme in (({"width": 390, "height": 700}, "light"), ({"width": 1280, "height": 700}, "dark")):
        with opened(browser, live.address, viewport=size, color_scheme=scheme, storage_state=signed_in) as page:
            page.goto("/north/both")
            alert = page.get_by_role("alert")
            assert re.search(
                r"south/digits [0-9a-f]{10}, from which this one was made, was withdrawn", alert.inner_text()
            )
            assert alert.bounding_box()["y"] < size["height"] / 2
            assert page.locator(".lineage .bad").count() == 1
            assert barriers(page) == []
            picture(page, f"flagged-{size['width']}-{scheme}")
