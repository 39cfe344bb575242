"""Pulling ready-made exports, end to end against a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="pull needs the extra 'export'")
import onnx
import onnxruntime as ort
from huggingface_hub import constants

from models.errors import ExportError, PullError
from models.manifest import ModelManifest
from models.pull import default_name, pull
from models.registry import ModelRegistry
from models.runtimes import RuntimeOptions
from models.verify import verify
from tests import tiny_onnx
from tests.hub import Hub, point_at, serving

EXACT = RuntimeOptions(runtime="onnxruntime", precision="fp32")  # a faster one may compute in bfloat16
ROOT = Path(__file__).parents[2]
SPLIT, COMBINED, SIGLIP, IMMICH = "tiny/split", "tiny/combined", "tiny/siglip", "tiny/immich"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repositories = {
        SPLIT: tiny_onnx.transformers_split(),
        COMBINED: tiny_onnx.transformers_combined(),
        SIGLIP: tiny_onnx.transformers_combined("siglip"),
        IMMICH: tiny_onnx.immich(),
    }
    with serving(Hub(repositories)) as running:
        point_at(running, tmp_path / "cache", monkeypatch)
        yield running


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "models" / "pulled"


def nothing_left(destination: Path) -> bool:
    return not destination.parent.exists() or not list(destination.parent.iterdir())


@pytest.mark.parametrize(
    ("repo", "scale", "bias", "activation", "dynamic_length"),
    [
        (SPLIT, 100.0, 0.0, "softmax", True),
        (COMBINED, tiny_onnx.LOGIT_SCALE, 0.0, "softmax", True),
        (SIGLIP, tiny_onnx.LOGIT_SCALE, tiny_onnx.LOGIT_BIAS, "sigmoid", False),
        (IMMICH, 100.0, 0.0, "softmax", False),
    ],
)
def test_every_layout_becomes_a_model_of_the_registry(
    hub: Hub,
    destination: Path,
    repo: str,
    scale: float,
    bias: float,
    activation: str,
    dynamic_length: bool,
) -> None:
    pull(repo, destination=destination)

    manifest = ModelManifest.read(destination)
    assert manifest.name == "pulled"
    assert manifest.scoring.logit_scale == pytest.approx(scale, rel=1e-5)
    assert manifest.scoring.logit_bias == pytest.approx(bias, abs=1e-4)
    assert manifest.scoring.activation == activation
    assert manifest.text.dynamic_length is dynamic_length
    assert manifest.text.end_token == tiny_onnx.END_ID
    assert manifest.licence == "mit"
    assert f"{repo}@{hub.commit(repo)}" in manifest.source
    assert manifest.parity is not None
    assert manifest.parity.reference == f"original ONNX files of {repo}@{hub.commit(repo)}"
    assert manifest.parity.batches == (1, 2, 7)
    assert min(manifest.parity.image.min_cosine, manifest.parity.text.min_cosine) >= 0.99999
    for path, digest in manifest.parity.versions.items():
        if path.endswith(".onnx"):
            assert digest == f"sha256:{hashlib.sha256(hub.repositories[repo][path]).hexdigest()}"
    report = verify(destination)
    assert report.passed, report
    assert [path.name for path in destination.parent.iterdir()] == ["pulled"]


def test_served_features_are_those_of_the_original_graph(hub: Hub, destination: Path) -> None:
    """Through registry, tokenizer and preprocessing, against the original with its own inputs by hand."""
    pull(IMMICH, destination=destination)
    registry = ModelRegistry(destination.parent, options=EXACT)
    model = registry.load("pulled")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (5, tiny_onnx.SIZE, tiny_onnx.SIZE, 3), dtype=np.uint8)
    ids = [[1, 4, 6, 2], [1, 2], [1, *([9] * 14), 2]]
    files = hub.repositories[IMMICH]
    visual, textual = (ort.InferenceSession(files[f"{part}/model.onnx"]) for part in ("visual", "textual"))
    values = (pixels / 255 - np.array(tiny_onnx.MEAN)) / np.array(tiny_onnx.STD)
    pictures = values.transpose(0, 3, 1, 2).astype(np.float32)
    images = np.concatenate([visual.run(None, {"image": row[None]})[0] for row in pictures])
    padded = [row + [0] * (tiny_onnx.CONTEXT - len(row)) for row in ids]
    texts = np.concatenate([textual.run(None, {"text": np.array([row], np.int32)})[0] for row in padded])

    found_images = model.encode_pixels(list(pixels))
    found_texts = model.encode_texts(["a blue", "", " ".join(["the"] * 40)])
    model.close()

    np.testing.assert_allclose(
        found_images, images / np.linalg.norm(images, axis=1, keepdims=True), atol=2e-6
    )
    wanted = np.stack([texts[0], texts[1]])
    np.testing.assert_allclose(
        found_texts[:2], wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=2e-6
    )


def test_a_branch_a_commit_and_the_at_sign_name_the_same_model(hub: Hub, tmp_path: Path) -> None:
    commit = hub.commit(SPLIT)
    by_branch = pull(SPLIT, revision="main", destination=tmp_path / "a", name="same")
    by_commit = pull(f"{SPLIT}@{commit}", destination=tmp_path / "b", name="same")
    assert ModelManifest.read(by_branch) == ModelManifest.read(by_commit)


def test_weights_beside_the_graph_come_along(hub: Hub, destination: Path, tmp_path: Path) -> None:
    files = dict(hub.repositories[SPLIT])
    model = onnx.load_from_string(files["onnx/vision_model.onnx"])
    onnx.save(
        model,
        tmp_path / "vision_model.onnx",
        save_as_external_data=True,
        location="vision_model.onnx_data",
        size_threshold=1024,
    )
    for name in ("vision_model.onnx", "vision_model.onnx_data"):
        files[f"onnx/{name}"] = (tmp_path / name).read_bytes()
    hub.repositories["tiny/external"] = files

    pull("tiny/external", destination=destination)
    pull(SPLIT, destination=destination.with_name("inline"))

    pixels = np.random.default_rng(0).integers(0, 256, (3, tiny_onnx.SIZE, tiny_onnx.SIZE, 3), np.uint8)
    external, inline = (
        ort.InferenceSession(destination.with_name(name) / "image.onnx").run(None, {"pixels": pixels})[0]
        for name in ("pulled", "inline")
    )
    np.testing.assert_array_equal(external, inline)
    assert verify(destination).passed


def test_weights_in_another_folder_are_refused(hub: Hub, destination: Path) -> None:
    files = dict(hub.repositories[SPLIT])
    model = onnx.load_from_string(files["onnx/vision_model.onnx"])
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    hub.repositories["tiny/odd"] = files | {"onnx/vision_model.onnx": model.SerializeToString()}
    with pytest.raises(ExportError, match="points to weights in another folder"):
        pull("tiny/odd", destination=destination)


def test_a_connection_that_breaks_is_resumed_where_it_broke(
    hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cuts["onnx/vision_model.onnx"] = [20_000]

    pull(SPLIT, destination=destination)

    first, second = hub.ranges("onnx/vision_model.onnx")
    assert first == ""
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 20_000
    assert verify(destination).passed


def test_a_pull_that_was_cut_off_keeps_what_it_had_and_the_next_one_goes_on(
    hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
    hub.cuts["onnx/text_model.onnx"] = [0] * 20

    with pytest.raises(PullError, match=r"connection to .* was cut while onnx/text_model.onnx .*pull again"):
        pull(SPLIT, destination=destination)
    assert nothing_left(destination)

    hub.cuts.clear()
    pull(SPLIT, destination=destination)
    assert len(hub.ranges("onnx/vision_model.onnx")) == 1
    assert verify(destination).passed


def test_what_is_in_the_cache_can_be_pulled_offline(
    hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = pull(SPLIT, destination=destination)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.requests)
    offline = pull(SPLIT, destination=destination.with_name("offline"))
    assert len(hub.requests) == asked
    assert ModelManifest.read(offline).files == ModelManifest.read(online).files
    with pytest.raises(PullError, match="not in the cache"):
        pull(COMBINED, destination=destination.with_name("never"))


def test_a_pinned_digest_is_kept_to(hub: Hub, destination: Path) -> None:
    right = hashlib.sha256(hub.repositories[SPLIT]["onnx/text_model.onnx"]).hexdigest()
    pull(SPLIT, destination=destination, sha256={"onnx/text_model.onnx": right.upper()})
    other = destination.with_name("other")
    with pytest.raises(PullError, match=f"the pin expects the SHA-256 {'0' * 64}, the file has {right}"):
        pull(SPLIT, destination=other, sha256={"onnx/text_model.onnx": "0" * 64})
    with pytest.raises(PullError, match=r"has no file onnx/typo\.onnx"):
        pull(SPLIT, destination=other, sha256={"onnx/typo.onnx": right})
    with pytest.raises(PullError, match="64 hexadecimal digits"):
        pull(SPLIT, destination=other, sha256={"onnx/text_model.onnx": "abc"})
    hub.repositories["tiny/more"] = {**hub.repositories[SPLIT], "tokenizer_extra": b"{}"}
    with pytest.raises(PullError, match="does not use tokenizer_extra"):
        pull("tiny/more", destination=other, sha256={"tokenizer_extra": right})
    assert not other.exists()


def test_a_file_that_is_not_what_the_hub_lists_is_refused(hub: Hub, destination: Path) -> None:
    body = hub.repositories[SPLIT]["onnx/vision_model.onnx"]
    hub.tampered["onnx/vision_model.onnx"] = body[:-1] + bytes([body[-1] ^ 1])
    with pytest.raises(PullError, match="the hub expects the SHA-256"):
        pull(SPLIT, destination=destination)
    assert nothing_left(destination)


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("tiny/unknown", None, "has no tiny/unknown"),
        ("no//name", None, "is no repository name"),
        (SPLIT, "v9", "revision: tiny/split has no branch, tag or commit 'v9'"),
    ],
)
def test_what_does_not_exist_is_named(
    hub: Hub, destination: Path, repo: str, revision: str | None, message: str
) -> None:
    with pytest.raises(PullError, match=message):
        pull(repo, revision=revision, destination=destination)
    assert nothing_left(destination)


def test_a_gated_repository_says_what_to_do(hub: Hub, destination: Path) -> None:
    hub.gated.add(SPLIT)
    with pytest.raises(PullError, match=r"tiny/split is gated: accept its terms .* set HF_TOKEN"):
        pull(SPLIT, destination=destination)


def test_the_token_goes_along(hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_for_this_test")
    pull(SPLIT, destination=destination)
    assert hub.authorizations == {"Bearer hf_for_this_test"}


def test_a_hub_that_does_not_answer(destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PullError, match=r"the hub http://127\.0\.0\.1:9 cannot be reached"):
        pull(SPLIT, destination=destination)
    assert nothing_left(destination)


def test_an_unknown_layout_lists_what_was_looked_for(hub: Hub, destination: Path) -> None:
    hub.repositories["tiny/weights"] = {"config.json": b"{}", "model.safetensors": b"weights"}
    with pytest.raises(
        PullError, match=r"looked for onnx/model.onnx.*or onnx/vision_model.onnx.*visual/model"
    ):
        pull("tiny/weights", destination=destination)
    with pytest.raises(PullError, match=r"no ready-made fp16 export .*vision_model_fp16.onnx"):
        pull(SPLIT, precision="fp16", destination=destination)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", {"shortest_edge": 40}, "size 40 and crop_size 32 must be equal"),
        ("crop_size", {"height": 32, "width": 48}, "crop_size must be square"),
        ("resample", 1, "resample must be bilinear .* or bicubic .*, not 1"),
        ("rescale_factor", 1.0, "rescale_factor must be 1/255, not 1.0"),
        ("image_mean", None, "lacks or garbles a field"),
    ],
)
def test_preprocessing_that_serving_cannot_do_is_an_error(
    hub: Hub, destination: Path, field: str, value: object, message: str
) -> None:
    files = dict(hub.repositories[SPLIT])
    config = json.loads(files["preprocessor_config.json"]) | {field: value}
    hub.repositories["tiny/odd"] = files | {"preprocessor_config.json": json.dumps(config).encode()}
    with pytest.raises(PullError, match=message):
        pull("tiny/odd", destination=destination)
    assert nothing_left(destination)


def test_towers_that_do_not_belong_together_are_refused(hub: Hub, destination: Path) -> None:
    files = dict(hub.repositories[SPLIT])
    text = onnx.load_from_string(files["onnx/text_model.onnx"])
    projection = next(weight for weight in text.graph.initializer if weight.name == "text_projection")
    narrow = onnx.numpy_helper.to_array(projection)[:, :8]
    projection.CopyFrom(onnx.numpy_helper.from_array(narrow, "text_projection"))
    text.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 8
    hub.repositories["tiny/odd"] = files | {"onnx/text_model.onnx": text.SerializeToString()}
    with pytest.raises(ExportError, match="the towers of one CLIP model give"):
        pull("tiny/odd", destination=destination)
    assert nothing_left(destination)


def test_clip_without_its_projection_is_refused(hub: Hub, destination: Path) -> None:
    """A vision model exported without projection has a pooler_output, which is no image embedding."""
    files = dict(hub.repositories[SPLIT])
    vision = onnx.load_from_string(files["onnx/vision_model.onnx"])
    for output in vision.graph.output:
        if output.name == "image_embeds":
            output.name = "pooler_output"
    for node in vision.graph.node:
        node.output[:] = ["pooler_output" if name == "image_embeds" else name for name in node.output]
    hub.repositories["tiny/odd"] = files | {"onnx/vision_model.onnx": vision.SerializeToString()}
    with pytest.raises(ExportError, match="last_hidden_state, pooler_output, and none of image_embeds"):
        pull("tiny/odd", destination=destination)


def test_siglip_without_scores_asks_for_its_scale(hub: Hub, destination: Path) -> None:
    files = dict(hub.repositories[IMMICH])
    config = json.loads(files["config.json"]) | {"init_logit_bias": -10}
    hub.repositories["tiny/siglip-towers"] = files | {"config.json": json.dumps(config).encode()}
    with pytest.raises(PullError, match="give logit_scale and logit_bias"):
        pull("tiny/siglip-towers", destination=destination)
    pull("tiny/siglip-towers", destination=destination, logit_scale=110.5, logit_bias=-12.5)
    scoring = ModelManifest.read(destination).scoring
    assert (scoring.logit_scale, scoring.logit_bias, scoring.activation) == (110.5, -12.5, "sigmoid")


def test_a_full_disk_is_one_sentence(hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.rewrap.onnx.save", full)
    with pytest.raises(ExportError, match="could not be written: the disk is full"):
        pull(SPLIT, destination=destination)
    assert nothing_left(destination)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(
        PullError, match=r"config.json of tiny/combined could not be stored in .*disk is full"
    ):
        pull(COMBINED, destination=destination)


def test_an_existing_model_is_replaced_only_when_asked(hub: Hub, destination: Path) -> None:
    pull(SPLIT, destination=destination)
    before = ModelManifest.read(destination)
    with pytest.raises(ExportError, match="exists"):
        pull(COMBINED, destination=destination)
    assert ModelManifest.read(destination) == before
    pull(COMBINED, destination=destination, overwrite=True)
    assert ModelManifest.read(destination).source != before.source
    assert [path.name for path in destination.parent.iterdir()] == ["pulled"]


def test_a_failed_replacement_leaves_the_old_model(hub: Hub, destination: Path) -> None:
    pull(SPLIT, destination=destination)
    before = ModelManifest.read(destination)
    hub.repositories["tiny/broken"] = {**hub.repositories[COMBINED], "onnx/model.onnx": b"no graph"}
    with pytest.raises(ExportError, match=r"model\.onnx is no readable ONNX graph"):
        pull("tiny/broken", destination=destination, overwrite=True)
    assert ModelManifest.read(destination) == before
    assert verify(destination).passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "../up"}, r"name: '\.\./up' must be letters"),
        ({"logit_scale": 0.0}, "logit_scale: must be a positive number, not 0.0"),
        ({"logit_bias": -10.0}, "logit_scale: must be a positive number, not None"),
    ],
)
def test_arguments_that_do_not_fit_are_named_before_anything_is_fetched(
    hub: Hub, destination: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(PullError, match=message):
        pull(SPLIT, destination=destination, **arguments)
    assert not hub.requests


def test_weights_too_large_for_one_file_are_kept_beside_it(
    hub: Hub, destination: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.rewrap.INLINE_LIMIT", 10_000)
    pull(IMMICH, destination=destination)
    assert "image.onnx.data" in ModelManifest.read(destination).files
    assert (destination / "image.onnx").stat().st_size < 10_000
    assert verify(destination).passed


@pytest.mark.parametrize(("package", "extra"), [("onnx", "export"), ("onnxruntime", "cpu")])
def test_a_missing_package_is_named_with_its_extra(
    destination: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PullError, match=rf"package {package}, .* pip install 'clipserve\[{extra}\]'"):
        pull(SPLIT, destination=destination)


def test_progress_tells_every_download(hub: Hub, destination: Path) -> None:
    seen: list[tuple[str, float]] = []
    pull(SPLIT, destination=destination, progress=lambda stage, done: seen.append((stage, done)))
    assert ("onnx/vision_model.onnx", 1.0) in seen
    assert ("onnx/text_model.onnx", 1.0) in seen
    assert seen[-1] == ("done", 1.0)


def test_the_environment_names_hub_and_cache(hub: Hub, destination: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HUB_CACHE as a user sets them, in a process of its own."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_CACHE": str(tmp_path / "elsewhere"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    code = "import pathlib, sys, models.pull as m; m.pull(sys.argv[1], destination=pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, SPLIT, str(destination)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)
    assert ModelManifest.read(destination).name == "pulled"
    assert (tmp_path / "elsewhere" / "models--tiny--split").is_dir()


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("Xenova/clip-vit-base-patch32", "clip-vit-base-patch32"),
        ("immich-app/ViT-B-32__openai@main", "ViT-B-32__openai"),
        ("owner/odd name!", "odd-name"),
    ],
)
def test_the_default_name_is_the_repositorys(repo: str, name: str) -> None:
    assert default_name(repo) == name
