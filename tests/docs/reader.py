"""A reader who does what a page says, with a shell, a server, and a folder of what the page mentions."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

import pytest

from models.manifest import ModelManifest
from tests.docs.answers import check, is_like, last_json, read_shown
from tests.docs.pages import ROOT, Block, Page
from tests.hub import Hub, serving
from tests.programs import debian_program, free_port
from tests.sorted_pictures import write_blurred_shapes
from tests.tiny_onnx import transformers_split

_HERE = Path(__file__).parent
_SHAPES = ROOT / "models" / "shapes" / "files"
_HTTP_ERROR = 22  # how curl ends when it was told --fail-with-body
_SETTINGS = {
    "RUNTIME": "onnxruntime",  # the reference: the same digits on every machine
    "INFERENCE_THREADS": "2",
    "DECODE_THREADS": "2",
    "DRAIN_SECONDS": "0",
}


class Reader:
    """Executes the blocks of one page in their order, in ``folder``, and compares what comes of them."""

    def __init__(self, folder: Path, *, hub: str) -> None:
        self._folder = folder
        self._port = free_port()
        self._pid, self._log = folder / "server.pid", folder / "server.log"
        self._exports = folder / "exports"
        programs = folder / "bin"
        programs.mkdir()
        (programs / "clipserve").symlink_to(_HERE / "clipserve-here.sh")
        (folder / ".curlrc").write_text("fail-with-body\nmax-time = 60\n")
        self._environment = {
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "HOME": str(folder),
            "LANG": "C.UTF-8",
            "COLUMNS": "120",
            "HF_ENDPOINT": hub,
            "CLIPSERVE_PORT": str(self._port),
            **{f"CLIPSERVE_{name}": value for name, value in _SETTINGS.items()},
            "DOCS_CLIPSERVE": str(Path(sys.executable).parent / "clipserve"),
            "DOCS_PID": str(self._pid),
            "DOCS_LOG": str(self._log),
        }

    def start_server(self) -> None:
        self._shell("clipserve serve")

    def read(self, page: Page, *, slow: bool) -> None:
        """Do all that the page says, except what is marked as slow unless ``slow``.

        Raises:
            AssertionError: something fails or comes out otherwise than shown; names the line.
        """
        done: Block | None = None
        printed = ""
        blocks = [block for block in page.blocks if not block.not_executed and (slow or not block.slow)]
        for number, block in enumerate(blocks):
            following = blocks[number + 1] if number + 1 < len(blocks) else None
            if block.file is not None:
                path = self._folder / block.file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text)
            elif block.language in {"sh", "python"}:
                printed, done = self._execute(block, following), block
            elif block.language == "json":
                assert done is not None, f"{block}: shows the answer to no command"
                self._compare(block, printed)
            elif block.language == "text" and done is not None and block.lines[0] - done.lines[1] <= 2:
                assert is_like(block.text, printed), f"{block}: {done} printed\n{printed}"

    def _execute(self, block: Block, following: Block | None) -> str:
        if block.language == "python":
            ended = self._run([sys.executable, "-c", self._here(block.text)])
            wanted = 0
        else:
            ended = self._shell(block.text, may_fail=True)
            refused = following and following.language == "json" and '"status": ' in following.text
            wanted = _HTTP_ERROR if refused and '"code": ' in following.text else 0
        assert ended.returncode == wanted, (
            f"{block}: ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}\n{self._server_log()}"
        )
        return ended.stdout

    def _compare(self, block: Block, printed: str) -> None:
        try:
            check(read_shown(block.text), last_json(printed))
        except AssertionError as error:
            raise AssertionError(f"{block}: {error}\n{printed[:3000]}") from None

    def _shell(self, commands: str, *, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
        """As one terminal would: what is exported stays so for the next block."""
        script = (
            f"set -euo pipefail; [ -e {self._exports} ] && . {self._exports}\n"
            f"trap 'export -p > {self._exports}' EXIT\n{self._here(commands)}"
        )
        ended = self._run(["bash", "-c", script])
        assert may_fail or ended.returncode == 0, ended.stderr
        return ended

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )

    def _here(self, text: str) -> str:
        """Pages say port 8000, and mean an environment that ``make run`` has made."""
        return re.sub(r"\b8000\b", str(self._port), text).replace(".venv/bin/", "")

    def _server_log(self) -> str:
        return self._log.read_text()[-2000:] if self._log.exists() else ""

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._pid.exists():
            return
        process = int(self._pid.read_text())
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
            for _ in range(200):
                os.kill(process, 0)
                time.sleep(0.05)
            os.kill(process, signal.SIGKILL)


@contextmanager
def reader_in(folder: Path) -> Iterator[Reader]:
    """A reader with stand-ins for what the pages speak of: ``pets``, the model ``vit-b-32``, a hub."""
    if sys.platform != "linux":
        pytest.skip("the reader's shell is that of Linux")
    debian_program("curl")
    (folder / "samples").symlink_to(ROOT / "samples")
    (folder / "key.txt").write_text("a-key-that-is-not-asked-for\n")
    write_blurred_shapes(folder / "pets", [("red", "circle"), ("blue", "star"), ("green", "ring")], copies=3)
    _write_model(folder / ".clipserve" / "models" / "vit-b-32")
    hub = Hub(repositories={"Xenova/clip-vit-base-patch32": transformers_split()})
    with ExitStack() as stack:
        stack.enter_context(serving(hub))
        yield stack.enter_context(Reader(folder, hub=hub.endpoint))


def _write_model(folder: Path) -> None:
    """The embedded model under another name."""
    folder.mkdir(parents=True)
    manifest = ModelManifest.read(_SHAPES)
    for file in manifest.files:
        (folder / file).symlink_to(_SHAPES / file)
    manifest.model_copy(update={"name": folder.name}).write(folder)
