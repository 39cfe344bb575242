from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from models.check_set import CheckSet
from models.errors import ExportError


def opened(picture: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(picture))
    image.load()
    return image


def test_the_same_arguments_give_the_same_set() -> None:
    first, again = (CheckSet.build(size=32, context_length=16, seed=4) for _ in range(2))
    assert first == again
    assert first != CheckSet.build(size=32, context_length=16, seed=5)


def test_every_item_is_different_and_there_are_enough_for_a_top1_gate() -> None:
    check = CheckSet.build(size=32, context_length=16)
    assert len(set(check.pictures)) == len(check.pictures)
    assert len(set(check.texts)) == len(check.texts)
    assert 1 - 1 / len(check.pictures) >= 0.97  # one flip of a near tie is no refusal of int8


def test_pictures_come_in_many_shapes_around_the_models_own() -> None:
    pictures = [opened(picture) for picture in CheckSet.build(size=48, context_length=16).pictures]
    assert {picture.format for picture in pictures} == {"PNG", "JPEG"}
    assert {picture.mode for picture in pictures} == {"RGB", "L"}
    widths, heights = zip(*(picture.size for picture in pictures), strict=True)
    assert min(*widths, *heights) < 48 < max(widths)
    assert any(width > height for width, height in zip(widths, heights, strict=True))
    assert any(width < height for width, height in zip(widths, heights, strict=True))


@pytest.mark.parametrize("context_length", [8, 77])
def test_texts_reach_from_nothing_to_twice_the_context(context_length: int) -> None:
    lengths = [len(text.split()) for text in CheckSet.build(size=32, context_length=context_length).texts]
    assert min(lengths) == 0
    assert max(lengths) >= 2 * context_length


def test_a_users_pictures_come_after_the_generated_ones_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "note.txt"):
        (tmp_path / name).write_bytes(name.encode())
    own = CheckSet.build(size=32, context_length=16, folder=tmp_path).pictures
    assert own[-2:] == (b"a.jpg", b"b.png")
    assert own[:-2] == CheckSet.build(size=32, context_length=16).pictures


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"holds no picture \(\.bmp, \.gif"):
        CheckSet.build(size=32, context_length=16, folder=tmp_path)
