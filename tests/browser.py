"""A browser without a window, and what a test does with the playground in it."""

from __future__ import annotations

import os
import shutil
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

_DROP = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
    for (const kind of ["dragenter", "dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(kind, options));
}"""
_PASTE = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type: "image/png"}));
    document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true}));
}"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Playground:
    """The page as its user sees it. ``requests`` holds every address it asked for, with the method."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.requests: list[tuple[str, str]] = []
        self.failures: list[str] = []
        page.on("request", lambda request: self.requests.append((request.method, request.url)))
        page.on("pageerror", lambda error: self.failures.append(str(error)))
        page.goto(url)

    def drop(self, name: str, content: bytes) -> None:
        self.page.evaluate(_DROP, [name, b64encode(content).decode()])

    def paste(self, name: str, content: bytes) -> None:
        self.page.evaluate(_PASTE, [name, b64encode(content).decode()])

    def choose(self, *files: Path) -> None:
        self.page.set_input_files("#files", list(files))

    def type_labels(self, text: str) -> None:
        self.page.get_by_role("textbox", name="Labels").fill(text)
        self.page.keyboard.press("Enter")

    @property
    def best(self) -> Locator:
        return self.page.locator("#bars .best .bar-label")

    def expect_best(self, label: str) -> None:
        expect(self.best).to_have_text(label)

    def times_asked(self, path: str) -> int:
        return sum(url.rpartition("/")[2] == path for method, url in self.requests if method == "POST")
