"""The model registry: finds, loads, warms, lists and unloads models.

A model is a folder ``<name>/`` with a ``model.json``. Everything here blocks; a server calls it from
a thread, so that loading one model never stops another from being served.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import ManifestError, UnknownModelError
from models.locks import one_at_a_time
from models.manifest import IMAGE_GRAPH, MANIFEST_NAME, TEXT_GRAPH, TOKENIZER, ModelManifest
from models.preprocess import Preprocessor
from models.runtimes import RuntimeOptions, Session, open_session
from models.selection import resolve
from models.text_batches import encode_tokens
from models.tokenizer import Tokenizer

_EMBEDDED = {"shapes": Path(__file__).parent / "shapes" / "files"}


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model apart from its graphs: what makes encoders' inputs, and says what to make of their features."""

    manifest: ModelManifest
    preprocess: Preprocessor
    tokenizer: Tokenizer

    @property
    def name(self) -> str:
        """The name it is asked for by."""
        return self.manifest.name


@dataclass(frozen=True, kw_only=True)
class LoadedModel(Model):
    """A model that has run a warm-up batch through both encoders and can be served."""

    image: Session
    text: Session
    load_seconds: float

    def encode_pixels(self, pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """N pictures, uint8 (size, size, 3) each → features float32 (N, D)."""
        return self.image.run(np.stack(pixels))

    def encode_tokens(self, tokens: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """N token sequences, int64 (length,) each → features float32 (N, D); see ``text_batches``."""
        return encode_tokens(self.text, self.tokenizer, tokens)

    def encode_images(self, pictures: Sequence[bytes]) -> NDArray[np.float32]:
        """N picture files → features float32 (N, D). For use without a server."""
        return self.encode_pixels([self.preprocess(picture) for picture in pictures])

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N strings → features float32 (N, D). For use without a server."""
        return self.encode_tokens([text.ids for text in self.tokenizer(texts)])

    def warm_up(self) -> None:
        """Run one batch through each encoder and check what comes back.

        Raises:
            ManifestError: the features are not what the manifest promises.
        """
        size, dim = self.manifest.image.size, self.manifest.embedding_dim
        black = np.zeros((size, size, 3), np.uint8)
        for tower, encode in (
            (IMAGE_GRAPH, partial(self.encode_pixels, [black, black])),
            (TEXT_GRAPH, partial(self.encode_texts, ["warm", "up"])),
        ):
            try:
                features = encode()
            except Exception as error:  # ONNX Runtime's own error classes share no public base
                raise ManifestError(f"{self.name}: {tower} cannot run a batch: {error}") from error
            if features.shape != (2, dim):
                raise ManifestError(f"{self.name}: {tower} gives {features.shape}, not (2, {dim})")
            lengths = np.linalg.norm(features, axis=1)
            if not np.allclose(lengths, 1, atol=1e-2):
                raise ManifestError(f"{self.name}: {tower} gives features that are not L2-normalised")
        self._warm_buckets()

    def _warm_buckets(self) -> None:
        """Every shape that batches are padded to, where they are: a GPU's first of each takes seconds."""
        size, text = self.manifest.image.size, self.manifest.text
        for count in self.image.buckets:
            self.image.warm_up(np.zeros((count, size, size, 3), np.uint8))
        step = self.text.length_step if text.dynamic_length else text.context_length
        lengths = {min(length + step, text.context_length) for length in range(0, text.context_length, step)}
        for count, length in product(self.text.buckets, sorted(lengths)):
            self.text.warm_up(np.zeros((count, length), np.int64))

    def running(self) -> dict[str, Any]:
        """What runs the graphs, and how long it took to get there."""
        return {
            "runtime": self.image.runtime,
            "provider": self.image.provider,
            "runtime_precision": self.image.precision,
            "load_seconds": round(self.load_seconds, 3),
        }

    def close(self) -> None:
        """Free both graphs."""
        self.image.close()
        self.text.close()


class ModelRegistry:
    """Models by name, from ``folders`` (the first that has a name wins) and the embedded ones."""

    def __init__(
        self,
        *folders: Path,
        options: RuntimeOptions | None = None,
        max_pixels: int = 178_956_970,
        exif: bool = True,
        fast_decode: bool = False,
    ) -> None:
        self._folders = folders
        self._options = options or RuntimeOptions()
        self._max_pixels = max_pixels
        self._exif = exif
        self._fast_decode = fast_decode
        self._loaded: dict[str, LoadedModel] = {}
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}

    def names(self) -> list[str]:
        """Every model that could be loaded, sorted."""
        return sorted(self._found())

    def folder(self, name: str) -> Path:
        """Where the model ``name`` lies.

        Raises:
            UnknownModelError: nowhere; the text lists the names that are known.
        """
        found = self._found()
        if name not in found:
            known = ", ".join(sorted(found)) or "none"
            raise UnknownModelError(f"no model named {name!r}; known models: {known}")
        return found[name]

    def _found(self) -> dict[str, Path]:
        """Read anew each time: a model that was exported or pulled a moment ago is there."""
        found = dict(_EMBEDDED)
        for folder in reversed(self._folders):
            manifests = folder.glob(f"[!.]*/{MANIFEST_NAME}") if folder.is_dir() else ()
            found |= {path.parent.name: path.parent for path in manifests}
        return found

    def manifest(self, name: str) -> ModelManifest:
        """The description of a model, loaded or not."""
        manifest = ModelManifest.read(self.folder(name))
        if manifest.name != name:
            raise ManifestError(
                f"{name}: {MANIFEST_NAME} gives the name {manifest.name!r}; they must be equal"
            )
        return manifest

    def without_graphs(self, name: str) -> Model:
        """A model whose graphs another process runs.

        Raises:
            UnknownModelError: there is none of that name.
            ManifestError: its tokenizer is missing or differs from its SHA-256.
        """
        folder, manifest = self.folder(name), self.manifest(name)
        manifest.verify_files(folder, (TOKENIZER,))
        return Model(
            manifest=manifest,
            preprocess=self._preprocessor(manifest),
            tokenizer=Tokenizer(folder / TOKENIZER, manifest.text),
        )

    def load(self, name: str) -> LoadedModel:
        """Check, open and warm up a model; returns at once if it is loaded already.

        Raises:
            UnknownModelError: there is none of that name.
            ManifestError: a file is missing, differs from its SHA-256 or does not do what it should.
            RuntimeUnavailableError: the execution provider asked for cannot run here.
        """
        with self._gate(name):
            return self._loaded[name] if name in self._loaded else self._put(self._open(name))

    def reload(self, name: str) -> LoadedModel:
        """Load a model anew from its files, in place of the one that is loaded, which the caller closes.

        Raises what ``load`` raises; then the old one stays.
        """
        with self._gate(name):
            return self._put(self._open(name))

    def get(self, name: str) -> LoadedModel:
        """A model that is loaded.

        Raises:
            UnknownModelError: it is not; the text lists those that are.
        """
        try:
            return self._loaded[name]
        except KeyError:
            loaded = ", ".join(sorted(self._loaded)) or "none"
            raise UnknownModelError(f"no model named {name!r} is loaded; loaded models: {loaded}") from None

    def unload(self, name: str) -> LoadedModel:
        """Take a model out of service. The caller closes it once nothing runs on it any more."""
        with self._lock:
            model = self.get(name)
            del self._loaded[name]
        return model

    def loaded(self) -> Iterator[LoadedModel]:
        """The models in service."""
        yield from list(self._loaded.values())

    def close(self) -> None:
        """Unload everything."""
        for model in list(self.loaded()):
            self.unload(model.name).close()

    def _gate(self, name: str) -> threading.Lock:
        """One model is opened once at a time; different ones side by side."""
        with self._lock:
            return self._loading.setdefault(name, threading.Lock())

    def _put(self, model: LoadedModel) -> LoadedModel:
        with self._lock:
            self._loaded[model.name] = model
        return model

    def _open(self, name: str) -> LoadedModel:
        began = time.perf_counter()
        folder, manifest = self.folder(name), self.manifest(name)
        with ThreadPoolExecutor(1) as thread:
            verified = thread.submit(manifest.verify_files, folder)  # reads every byte: beside the opening
            try:
                model = self._assemble(folder, manifest)
            except Exception:
                verified.result()  # that a file was changed says more than what came of it
                raise
        if (error := verified.exception()) is not None:
            model.close()
            raise error
        return replace(model, load_seconds=time.perf_counter() - began)

    def _assemble(self, folder: Path, manifest: ModelManifest) -> LoadedModel:
        tokenizer = Tokenizer(folder / TOKENIZER, manifest.text)
        options = self._options_for(manifest)
        # Compiled graphs are found in the cache while they are being written there, and half of one crashes.
        with one_at_a_time(options.cache_dir), ThreadPoolExecutor(2) as threads:
            options = resolve(folder, manifest, tokenizer, options)
            graphs = (folder / IMAGE_GRAPH, folder / TEXT_GRAPH)
            image, text = threads.map(partial(open_session, options=options), graphs)
        model = LoadedModel(
            manifest=manifest,
            preprocess=self._preprocessor(manifest),
            tokenizer=tokenizer,
            image=image,
            text=text,
            load_seconds=0.0,
        )
        model.warm_up()
        return model

    def _preprocessor(self, manifest: ModelManifest) -> Preprocessor:
        return Preprocessor(
            manifest.image, max_pixels=self._max_pixels, exif=self._exif, fast=self._fast_decode
        )

    def _options_for(self, manifest: ModelManifest) -> RuntimeOptions:
        """A folder of the cache for each set of weights: runtimes know a file by its path and time alone."""
        cache = self._options.cache_dir
        return replace(
            self._options,
            weights=manifest.precision,
            context_length=manifest.text.context_length,
            cache_dir=cache and cache / manifest.digest[:32],
        )


def describe(manifest: ModelManifest) -> dict[str, Any]:
    """The facts of a manifest that a client may want; file names and hashes are left to ``model.json``."""
    facts = manifest.model_dump(mode="json", exclude={"files", "schema_version"})
    return facts | {"digest": manifest.digest, "loaded": False}
