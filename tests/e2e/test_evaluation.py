"""``clipserve eval`` on pictures that the embedded model finds hard, in this process and through a server."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from models.registry import LoadedModel, ModelRegistry
from models.runtimes import RuntimeOptions
from models.shapes.pairs import PAIRS
from prompts.templates import TemplateSets
from service.cli import app
from service.evaluation.errors import EvaluationError, ServerError
from service.keys import new_key
from tests.programs import debian_program, free_port
from tests.server import Server, running_server
from tests.sorted_pictures import Plain, check_against_plain, write_blurred_shapes, write_templates

SETS = TemplateSets()
MISLEADING = ["a {label}", "a small blue circle and a {label}", "red {label} star", "a large {label}"]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    options = RuntimeOptions(runtime="onnxruntime", provider="cpu", threads=2)
    return ModelRegistry(options=options).load("shapes")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blurred_shapes(tmp_path_factory.mktemp("few") / "shapes", list(PAIRS[:24]), copies=5)


@pytest.fixture(autouse=True)
def _as_the_server_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"HOME": tmp_path, "RUNTIME": "onnxruntime", "PROVIDER": "cpu"}.items():
        monkeypatch.setenv(f"CLIPSERVE_{name}", str(value))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def evaluated(out: Path, *arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json", out / "found.json")
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads((out / "found.json").read_text())
    return found


def test_figures_are_those_of_the_plain_computation(few: Path, model: LoadedModel, tmp_path: Path) -> None:
    own = write_templates(tmp_path / "misleading.json", MISLEADING)
    named = ("--template-set", "photo", "--template-set", "openai-simple")
    found = evaluated(tmp_path, few, *named, "--templates", own)
    plain = Plain(model, few)
    names = [one["name"] for one in found["template_sets"]]
    assert names == ["photo", "openai-simple", "misleading"]
    for one in found["template_sets"]:
        known = MISLEADING if one["name"] == "misleading" else list(SETS.get(one["name"]).templates)
        check_against_plain(one, plain, known)
    assert 0.4 < found["template_sets"][0]["top1"]["value"] < 0.95, "too easy or too hard to tell sets apart"


def test_sets_are_measured_by_the_first(few: Path, tmp_path: Path) -> None:
    own = write_templates(tmp_path / "misleading.json", MISLEADING)
    found = evaluated(tmp_path, few, "--template-set", "photo", "--templates", own)
    photo, misleading = found["template_sets"]
    assert photo["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    difference = misleading["top1"]["value"] - photo["top1"]["value"]
    assert misleading["gain"]["value"] == pytest.approx(difference)
    assert found["best"] == max((photo, misleading), key=lambda one: one["top1"]["value"])["name"]


def test_without_names_the_usual_sets_are_compared(few: Path, tmp_path: Path) -> None:
    found = evaluated(tmp_path, few)
    compared = {one["name"]: len(one["templates"]) for one in found["template_sets"]}
    assert compared == {"photo": 1, "openai-simple": 7, "openai-imagenet": 80}


def test_the_most_confused_are_wrong_and_come_worst_first(
    few: Path, model: LoadedModel, tmp_path: Path
) -> None:
    found = evaluated(tmp_path, few, "--template-set", "photo", "--most-confused", 5)
    plain = Plain(model, few)
    confused = found["template_sets"][0]["most_confused"]
    order = plain.order(plain.prompts(["a photo of a {label}."]))
    wrong = {
        f"{plain.classes[truth]}/{number % 5}.png": plain.classes[answer].replace("_", " ")
        for number, (truth, answer) in enumerate(zip(plain.truth, order[:, 0], strict=True))
        if truth != answer
    }
    assert len(confused) == 5
    assert {one["path"]: one["answer"] for one in confused}.items() <= wrong.items()
    leads = [one["answer_score"] / one["label_score"] for one in confused]
    assert leads == sorted(leads, reverse=True)
    assert leads[-1] > 1


def test_what_is_never_wrong_is_reported_too(tmp_path: Path) -> None:
    folder = write_blurred_shapes(tmp_path / "easy", list(PAIRS[::12]), copies=2)
    arguments = ("--template-set", "photo", "--template-set", "shapes", "--report", tmp_path / "page.html")
    found = evaluated(tmp_path, folder, *arguments)
    assert [one["top1"]["value"] for one in found["template_sets"]] == [1.0, 1.0]
    page = (tmp_path / "page.html").read_text()
    assert "Which templates to keep" in page
    assert "Most confused pictures" not in page
    assert not re.search(r"\bnan\b", page)


def test_bad_pictures_are_listed_and_cost_nothing(few: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    for file in few.rglob("*.png"):
        copy = spoilt / file.relative_to(few)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    bad = spoilt / f"{'_'.join(PAIRS[0])}" / "bad <b>.jpg"
    bad.write_bytes(b"\xff\xd8\xff no picture")
    done = run(spoilt, "--template-set", "photo", "--json", tmp_path / "a", "--report", tmp_path / "b")
    assert done.exit_code == 0
    assert "left out: red_circle/bad <b>.jpg" in done.stderr
    found = json.loads((tmp_path / "a").read_text())
    assert [one["path"] for one in found["bad_pictures"]] == ["red_circle/bad <b>.jpg"]
    assert "bad &lt;b&gt;.jpg" in (tmp_path / "b").read_text()
    expected = evaluated(tmp_path, few, "--template-set", "photo")["template_sets"]
    assert found["template_sets"] == expected


def test_nothing_but_bad_pictures_is_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "bad" / name).mkdir(parents=True)
        (tmp_path / "bad" / name / "x.png").write_bytes(b"no picture")
    done = run(tmp_path / "bad")
    assert isinstance(done.exception, EvaluationError)
    assert "none of the 2 pictures could be encoded; a/x.png: the picture must be" in str(done.exception)


@pytest.fixture(scope="module")
def secret() -> tuple[str, str]:
    return new_key("eval")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, secret: tuple[str, str]) -> Iterator[Server]:
    """One that takes less than is sent at once, and wants a key."""
    home = tmp_path_factory.mktemp("server")
    with running_server(
        home, models="shapes", api_keys=secret[1], max_items=10, max_queue=20, max_body_bytes=60_000
    ) as server:
        yield server


def test_a_server_finds_the_same(few: Path, server: Server, secret: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{secret[0]}\n")
    arguments = (few, "--template-set", "photo", "--template-set", "openai-simple")
    here = evaluated(tmp_path, *arguments)
    there = evaluated(tmp_path, *arguments, "--server", server.url(), "--api-key", f"@{tmp_path / 'key'}")
    for ours, theirs in zip(here["template_sets"], there["template_sets"], strict=True):
        ours_scores, theirs_scores = ours.pop("most_confused"), theirs.pop("most_confused")
        assert [one["path"] for one in ours_scores] == [one["path"] for one in theirs_scores]
    assert there == here


def test_a_server_lists_bad_pictures_too(server: Server, secret: tuple[str, str], tmp_path: Path) -> None:
    folder = write_blurred_shapes(tmp_path / "few", list(PAIRS[:2]), copies=2)
    (folder / "red_circle" / "bad.png").write_bytes(b"no picture")
    (folder / "red_circle" / "huge.png").write_bytes(b"x" * 100_000)
    found = evaluated(
        tmp_path, folder, "--template-set", "photo", "--server", server.url(), "--api-key", secret[0]
    )
    reasons = {one["path"]: one["reason"] for one in found["bad_pictures"]}
    assert reasons.keys() == {"red_circle/bad.png", "red_circle/huge.png"}
    assert "60000" in reasons["red_circle/huge.png"]
    assert found["pictures"] == 4


def test_what_a_server_refuses_is_said(few: Path, server: Server, secret: tuple[str, str]) -> None:
    wrong = run(few, "--server", server.url(), "--api-key", "guess")
    assert isinstance(wrong.exception, ServerError)
    assert "answered 401: Authorization" in str(wrong.exception)
    unknown = run(few, "--server", server.url(), "--api-key", secret[0], "--model", "vit/b")
    assert isinstance(unknown.exception, ServerError)
    assert "answered 404" in str(unknown.exception)
    silent = run(few, "--server", f"http://127.0.0.1:{free_port()}")
    assert isinstance(silent.exception, ServerError)
    assert "no answer from http://127.0.0.1" in str(silent.exception)


def test_something_else_than_clipserve_is_an_error_too(few: Path) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"hello!")

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        done = run(few, "--server", f"http://127.0.0.1:{http.server_port}")
        http.shutdown()
        thread.join()
    assert isinstance(done.exception, ServerError)
    assert "is no clipserve" in str(done.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--template-set", "nobody"], "none is named 'nobody'; known: openai-imagenet"),
        (["--report", "nowhere/at/all.html"], "the folder nowhere/at does not exist"),
        (["--api-key", "x"], "give --server too"),
        (["--server", "localhost:8000"], "must begin with http://"),
        (["--server", "http://127.0.0.1", "--api-key", "@nowhere"], "nowhere cannot be read"),
    ],
)
def test_wrong_options_are_named(few: Path, arguments: list[str], message: str) -> None:
    done = run(few, *arguments)
    assert done.exit_code != 0
    said = re.sub(r"[\s│]+", " ", done.output + str(done.exception))
    assert message in said


@pytest.mark.e2e
def test_two_thousand_pictures_and_a_report_that_opens_offline(model: LoadedModel, tmp_path: Path) -> None:
    folder = write_blurred_shapes(tmp_path / "shapes", list(PAIRS), copies=14)
    own = write_templates(tmp_path / "misleading.json", MISLEADING)
    named = [part for name in ("photo", "shapes", "openai-imagenet") for part in ("--template-set", name)]
    page = tmp_path / "report.html"
    found = evaluated(tmp_path, folder, *named, "--templates", own, "--report", page)
    assert found["pictures"] == 2016
    plain = Plain(model, folder)
    for one in found["template_sets"]:
        known = MISLEADING if one["name"] == "misleading" else list(SETS.get(one["name"]).templates)
        check_against_plain(one, plain, known)
    check_page(page, found)


def check_page(page: Path, found: dict[str, Any]) -> None:
    """In a browser that has no network: all is there, nothing else is asked for, nothing sticks out."""
    from playwright.sync_api import sync_playwright

    assert not re.search(r"(?:https?:)?//[a-z]", re.sub(r'data:[^"]+', "", page.read_text()))
    best = next(one for one in found["template_sets"] if one["name"] == found["best"])
    asked: list[str] = []
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=debian_program("chromium"), args=["--no-sandbox"]
        )
        for width in (390, 1280):
            context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
            view = context.new_page()
            view.on("request", lambda request: asked.append(request.url))
            view.on("console", lambda message: complaints.append(message.text))
            view.goto(page.as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") == width
            widths = view.locator("figure img").evaluate_all("all => all.map(one => one.naturalWidth)")
            assert widths == [128] * 24
            assert f"{100 * best['top1']['value']:.1f}" in view.locator("header").inner_text()
            names = view.locator("section").first.locator("tbody th").all_inner_texts()
            assert names == [one["name"] for one in found["template_sets"]]
        browser.close()
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert complaints == []
