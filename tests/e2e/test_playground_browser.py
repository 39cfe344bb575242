"""The playground in a real browser, before a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Route, expect

from service.keys import new_key
from tests.browser import CHROMIUM, Playground, chromium
from tests.server import Server, running_server
from tests.toy_models import write_toy_model

SAMPLES = Path(__file__).parents[2] / "samples"
BROKEN = (SAMPLES / "red-circle.png").read_bytes()[:200]

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium, or set CHROMIUM"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("playground"), models="shapes") as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def playground(context: BrowserContext, server: Server) -> Iterator[Playground]:
    playground = Playground(context.new_page(), f"{server.url()}/")
    yield playground
    assert playground.failures == []
    outside = [url for _, url in playground.requests if not url.startswith((f"{server.url()}/", "blob:"))]
    assert outside == []


def sample(name: str) -> bytes:
    return (SAMPLES / name).read_bytes()


def run_in_bash(command: str, folder: Path, **environment: str) -> bytes:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    ).stdout


# What the page shows


def test_a_dropped_picture_is_named_and_named_anew_when_labels_change(playground: Playground) -> None:
    playground.drop("mine.png", sample("red-circle.png"))
    playground.type_labels("red circle, blue star, green triangle")
    playground.expect_best("red circle")
    assert playground.times_asked("embed") == 1

    playground.page.get_by_role("button", name="Remove red circle").click()
    expect(playground.page.locator("#bars li")).to_have_count(2)
    expect(playground.best).not_to_have_text("red circle")

    playground.type_labels("a circle that is red")
    playground.expect_best("a circle that is red")
    playground.page.get_by_label("Template set").select_option("shapes")
    expect(playground.page.locator("#prompts-list li")).to_have_count(8)
    playground.expect_best("a circle that is red")
    assert playground.times_asked("embed") == 1  # scored from the embedding that the page kept


def test_scores_are_those_of_the_server(playground: Playground, server: Server) -> None:
    playground.drop("star.jpg", sample("blue-star.jpg"))
    playground.type_labels("star, heart, arrow")
    playground.expect_best("star")
    fields = {"labels": ["star", "heart", "arrow"]}
    answer = httpx.post(
        f"{server.url()}/classify", data=fields, files={"image": sample("blue-star.jpg")}, timeout=30
    )
    expected = answer.json()["results"][0]["predictions"]
    shown = playground.page.locator("#bars li").all()
    for row, prediction in zip(shown, expected, strict=True):
        assert row.locator(".bar-label").inner_text() == prediction["label"]
        number = float(re.sub(r"[^0-9.]", "", row.locator(".bar-score").inner_text()))
        assert number == pytest.approx(100 * prediction["score"], abs=0.1)


def test_several_pictures_make_a_heat_map(playground: Playground) -> None:
    playground.choose(SAMPLES / "red-circle.png", SAMPLES / "blue-star.jpg")
    playground.paste("image.png", sample("yellow-heart.png"))
    playground.type_labels("red circle, blue star, yellow heart")
    page = playground.page
    expect(page.locator("#heat-map tbody tr")).to_have_count(3)
    expect(page.locator("#heat-map thead th")).to_have_text(["red circle", "blue star", "yellow heart"])
    best = page.locator("#heat-map tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.querySelectorAll('td')].findIndex((one) => one.matches('.best')))"
    )
    assert best == [0, 1, 2]
    page.locator("#heat-map").get_by_role("button", name="blue-star.jpg").click()
    playground.expect_best("blue star")
    assert playground.times_asked("embed") == 3


def test_a_broken_file_is_an_error_and_the_others_are_answered(playground: Playground) -> None:
    playground.choose(SAMPLES / "red-circle.png")
    playground.type_labels("red circle, blue star")
    playground.expect_best("red circle")
    playground.drop("broken.png", BROKEN)
    page = playground.page
    expect(page.get_by_role("alert")).to_contain_text("picture")
    expect(page.get_by_label("broken.png, not readable")).to_be_visible()
    page.get_by_label("red-circle.png", exact=True).click()
    playground.expect_best("red circle")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_while_the_server_works_the_page_says_so_and_old_answers_are_not_shown(
    playground: Playground,
) -> None:
    page = playground.page
    held: list[Route] = []

    def hold(route: Route) -> None:
        held.append(route)

    page.route("**/embed", hold)
    playground.drop("mine.png", sample("red-circle.png"))
    playground.type_labels("red circle, blue star")
    expect(page.locator("#empty-text")).to_have_text("Looking at the picture…")
    expect(page.locator("#result")).to_have_attribute("aria-busy", "true")

    page.route("**/classify", hold)
    held.pop().continue_()
    while not held:
        page.wait_for_timeout(10)
    page.unroute("**/classify")
    playground.type_labels("green triangle")
    expect(page.locator("#bars li")).to_have_count(3)
    held.pop().abort()  # the first answer never comes, and nobody waits for it
    playground.expect_best("red circle")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_server_that_still_starts_is_waited_for(context: BrowserContext, server: Server) -> None:
    page = context.new_page()
    looks = 0

    def answer(route: Route) -> None:
        nonlocal looks
        looks += 1
        models = route.fetch().json()
        models["models"] = [one | {"loaded": looks > 1} for one in models["models"]]
        route.fulfill(json=models)

    page.route("**/models", answer)
    playground = Playground(page, f"{server.url()}/")
    expect(page.get_by_role("alert")).to_contain_text("still loading")
    page.get_by_role("button", name="Try the sample blue star").click()
    playground.expect_best("blue star")
    expect(page.get_by_role("alert")).to_be_hidden()


def test_each_model_encodes_a_picture_once(context: BrowserContext, tmp_path: Path) -> None:
    write_toy_model(tmp_path / "models")
    with running_server(tmp_path, models="shapes,toy") as server:
        playground = Playground(context.new_page(), f"{server.url()}/")
        playground.page.get_by_role("button", name="Try the sample blue star").click()
        playground.expect_best("blue star")
        for model in ("toy", "shapes", "toy"):
            with playground.page.expect_response("**/classify") as response:
                playground.page.get_by_label("Model", exact=True).select_option(model)
            assert response.value.json()["model"] == model
            assert playground.times_asked("embed") == 2


def test_a_sample_needs_one_click(playground: Playground) -> None:
    expect(playground.page.locator("#empty-text")).to_have_text(re.compile("Add a picture and a few labels"))
    playground.page.get_by_role("button", name="Try the sample blue star").click()
    playground.expect_best("blue star")


def test_templates_of_your_own(playground: Playground) -> None:
    playground.page.get_by_role("button", name="Try the sample blue star").click()
    playground.page.get_by_label("Template set").select_option("your own…")
    own = playground.page.get_by_label("Your own templates")
    own.fill("no placeholder")
    expect(playground.page.get_by_role("alert")).to_contain_text("{label}")
    own.fill("a {label}\nthis is a {label}")
    playground.expect_best("blue star")
    prompts = playground.page.locator("#prompts-list li")
    expect(prompts).to_have_text(["a blue star", "this is a blue star"])


def test_a_server_that_is_gone_is_an_error_and_may_be_asked_again(playground: Playground) -> None:
    page = playground.page
    page.get_by_role("button", name="Try the sample blue star").click()
    playground.expect_best("blue star")
    page.context.set_offline(True)
    playground.type_labels("yellow star")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    playground.expect_best("blue star")
    expect(page.locator("#bars li")).to_have_count(5)


def test_the_keyboard_is_enough(playground: Playground) -> None:
    page = playground.page
    page.get_by_role("button", name="Try the sample red circle").focus()
    page.keyboard.press("Enter")
    playground.expect_best("red circle")
    page.get_by_role("textbox", name="Labels").focus()
    page.keyboard.press("Backspace")  # to the last chip
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("button", name="Remove blue star")).to_be_focused()
    page.keyboard.press("Delete")
    expect(page.get_by_role("button", name="Remove green triangle")).to_be_focused()
    expect(page.locator("#bars li")).to_have_count(3)
    expect(page.get_by_role("status")).to_have_text(re.compile("red-circle.png: red circle, "))


# What is copied


@pytest.mark.parametrize("source", ["chosen", "sample"])
def test_what_is_copied_does_the_same(playground: Playground, tmp_path: Path, source: str) -> None:
    """Names and labels are as awkward as people make them."""
    page = playground.page
    labels = ["red circle", 'it\'s "blue"; $HOME `x`', "@file", "<b>naïve 🙂</b>", "-d \\ x"]
    if source == "chosen":
        picture = tmp_path / 'the "red" circle; it\'s.png'
        picture.write_bytes(sample("red-circle.png"))
        playground.choose(picture)
        playground.type_labels(", ".join(labels))
    else:
        page.get_by_role("button", name="Try the sample red circle").click()
        playground.type_labels(", ".join(labels))
        labels += ["blue star", "green triangle", "yellow heart"]
    playground.expect_best("red circle")

    page.get_by_role("button", name="Copy as curl").click()
    command = page.evaluate("navigator.clipboard.readText()")
    predictions = json.loads(run_in_bash(command, tmp_path))["results"][0]["predictions"]
    assert predictions[0]["label"] == "red circle"
    assert {one["label"] for one in predictions} == set(labels)

    page.get_by_role("button", name="Copy as Python").click()
    program = page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    printed = [line.split(" ", 1)[1] for line in done.stdout.splitlines()]
    assert (printed[0], set(printed)) == ("red circle", set(labels))


# Where the page stands


def test_behind_the_prefix_of_a_proxy(context: BrowserContext, server: Server) -> None:
    page = context.new_page()
    inside = f"{server.url()}/"

    def forward(route: Route) -> None:
        route.fulfill(response=route.fetch(url=route.request.url.replace("http://proxy.test/clip/", inside)))

    page.route("http://proxy.test/clip/**", forward)
    playground = Playground(page, "http://proxy.test/clip/")
    page.get_by_role("button", name="Try the sample blue star").click()
    playground.expect_best("blue star")
    asked = {url for _, url in playground.requests if not url.startswith("blob:")}
    assert all(url.startswith("http://proxy.test/clip/") for url in asked)
    expect(page.locator("#snippet")).to_contain_text("http://proxy.test/clip/classify")


def test_a_server_with_keys_asks_for_one(context: BrowserContext, tmp_path: Path) -> None:
    key, entry = new_key("shop")
    with running_server(tmp_path, models="shapes", api_keys=entry) as server:
        playground = Playground(context.new_page(), f"{server.url()}/")
        page = playground.page
        page.get_by_label("This server asks for an API key.").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#key-hint")).to_have_text("The server does not know that key.")
        page.get_by_label("This server asks for an API key.").fill(key)
        page.get_by_role("button", name="Use key").click()
        page.get_by_role("button", name="Try the sample blue star").click()
        playground.expect_best("blue star")
        expect(page.locator("#key-form")).to_be_hidden()

        page.get_by_role("button", name="Copy as curl").click()
        command = page.evaluate("navigator.clipboard.readText()")
        assert key not in page.content() + command
        answer = json.loads(run_in_bash(command, tmp_path, CLIPSERVE_KEY=key))
        assert answer["results"][0]["predictions"][0]["label"] == "blue star"

        page.reload()  # the key lasts as long as the tab
        page.get_by_role("button", name="Try the sample yellow heart").click()
        playground.expect_best("yellow heart")
