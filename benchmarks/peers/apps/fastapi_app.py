"""The service everyone writes first: FastAPI, an upload, open_clip, no batching."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from encoders import encoder
from fastapi import Body, FastAPI, UploadFile


def create_app(engine: str, model: Path) -> FastAPI:
    """Both endpoints, run in FastAPI's thread pool."""
    app, clip = FastAPI(), encoder(engine, model)

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/image")
    def embed_image(image: UploadFile) -> dict[str, list[float]]:
        return {"embedding": clip.images([clip.decode(image.file.read())])[0].tolist()}

    @app.post("/text")
    def embed_text(text: str = Body(embed=True)) -> dict[str, list[float]]:
        return {"embedding": clip.texts([text])[0].tolist()}

    return app


if __name__ == "__main__":
    app = create_app(sys.argv[2], Path(sys.argv[3]))
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
