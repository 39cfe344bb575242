"""Every peer: what to install, how to start it, how to ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.weights import ModelFiles
from benchmarks.requests import forms, in_base64, post_json, raw

_APPS = Path(__file__).parent / "apps"
Command = Callable[[Path, int, ModelFiles], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A server that is not clipserve.

    ``environment`` names the folder of its virtual environment, ``packages`` what pip puts there.
    ``command`` makes its command line from that folder's ``bin``, a port and the model's files.
    """

    name: str
    environment: str
    packages: Sequence[str]
    shown: Sequence[str]
    command: Command
    ready: str
    image: Callable[[bytes], bytes]
    text: Callable[[str], bytes]
    vector: Callable[[Any], list[float]]
    variables: dict[str, str] = field(default_factory=dict)


def peers() -> list[Peer]:
    """All of them."""
    return [_infinity(), _litserve("onnx"), _litserve("torch-bf16"), _ray(), _fastapi()]


def _infinity() -> Peer:
    def command(bin_folder: Path, port: int, files: ModelFiles) -> Sequence[str]:
        options = {
            "--model-id": str(files.hugging_face),
            "--served-model-name": "clip",
            "--host": "127.0.0.1",
            "--port": str(port),
            "--log-level": "warning",
        }
        return [str(bin_folder / "infinity_emb"), "v2", *(word for pair in options.items() for word in pair)]

    def ask(modality: str, value: str) -> bytes:
        return post_json("/embeddings", {"model": "clip", "modality": modality, "input": [value]})

    return Peer(
        name="infinity",
        environment="infinity",
        packages=("infinity-emb[torch,server,vision]", "aiohttp"),
        shown=("infinity-emb", "torch", "transformers"),
        command=command,
        ready="/health",
        image=lambda picture: ask("image", f"data:image/jpeg;base64,{in_base64(picture)}"),
        text=lambda text: ask("text", text),
        vector=lambda answer: list(answer["data"][0]["embedding"]),
        variables={"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
    )


def _litserve(engine: str) -> Peer:
    titles = {"onnx": "LitServe, ONNX Runtime", "torch-bf16": "LitServe, torch cast to bf16 by hand"}
    return Peer(
        name=titles[engine],
        environment="litserve",
        packages=("litserve", "onnxruntime", "tokenizers", "open_clip_torch", "pillow"),
        shown=("litserve", "onnxruntime", "torch", "open_clip_torch"),
        command=_app("litserve_app.py", engine),
        ready="/health",
        image=lambda picture: post_json("/image", {"image": in_base64(picture)}),
        text=lambda text: post_json("/text", {"text": text}),
        vector=_embedding,
    )


def _ray() -> Peer:
    return Peer(
        name="Ray Serve, ONNX Runtime",
        environment="ray",
        packages=("ray[serve]", "onnxruntime", "tokenizers", "pillow"),
        shown=("ray", "onnxruntime"),
        command=_app("ray_app.py", "onnx"),
        ready="/",
        image=lambda picture: raw("/", [picture])[0],
        text=lambda text: post_json("/", {"text": text}),
        vector=_embedding,
        variables={"RAY_USAGE_STATS_ENABLED": "0"},
    )


def _fastapi() -> Peer:
    return Peer(
        name="FastAPI + open_clip",
        environment="fastapi",
        packages=("fastapi", "uvicorn", "python-multipart", "open_clip_torch", "pillow"),
        shown=("fastapi", "torch", "open_clip_torch"),
        command=_app("fastapi_app.py", "torch"),
        ready="/health",
        image=lambda picture: forms("/image", [[picture]])[0],
        text=lambda text: post_json("/text", {"text": text}),
        vector=_embedding,
    )


def _app(script: str, engine: str) -> Command:
    def command(bin_folder: Path, port: int, files: ModelFiles) -> Sequence[str]:
        model = files.onnx if engine == "onnx" else files.torch
        return [str(bin_folder / "python"), str(_APPS / script), str(port), engine, str(model)]

    return command


def _embedding(answer: Any) -> list[float]:
    return list(answer["embedding"])
