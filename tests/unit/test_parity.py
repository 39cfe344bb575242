from __future__ import annotations

import numpy as np
import pytest

from models.errors import ExportError
from models.manifest import ParityReport, TowerParity
from models.parity import GATES, batches, compare, encode, top1_agreement, worse


def unit(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def report(*, image: float = 1.0, text: float = 1.0, top1: float = 1.0) -> ParityReport:
    image_parity, text_parity = (
        TowerParity(items=3, min_cosine=cosine, max_difference=0.25) for cosine in (image, text)
    )
    return ParityReport(
        reference="r", batches=(1,), image=image_parity, text=text_parity, top1_agreement=top1
    )


@pytest.mark.parametrize("count", [0, 1, 3, 10, 11, 36])
def test_batches_cover_every_item_once_in_turns_of_one_two_and_seven(count: int) -> None:
    parts = [list(range(count))[part] for part in batches(count)]
    assert [item for part in parts for item in part] == list(range(count))
    assert [len(part) for part in parts[:-1]] == [1, 2, 7, 1, 2, 7, 1, 2, 7, 1, 2, 7][
        : max(0, len(parts) - 1)
    ]


def test_encode_keeps_the_order_of_the_items() -> None:
    class Doubler:
        def run(self, batch: np.ndarray) -> np.ndarray:
            seen.append(len(batch))
            return batch * np.float32(2)

    seen: list[int] = []
    items = [np.full(3, value, np.float32) for value in range(12)]
    features = encode(Doubler(), items, np.stack)  # type: ignore[arg-type]
    np.testing.assert_array_equal(features[:, 0], np.arange(12) * 2)
    assert seen == [1, 2, 7, 1, 1]


def test_the_worst_row_is_what_counts() -> None:
    reference = unit(4)
    exported = reference.copy()
    exported[2] = unit(1, seed=9)[0]
    found = compare("image", reference, exported)
    assert found.items == 4
    assert found.min_cosine == pytest.approx(float(reference[2] @ exported[2]), abs=1e-6)
    assert found.max_difference == pytest.approx(float(np.abs(reference[2] - exported[2]).max()), abs=1e-6)


def test_the_likeness_of_different_items_is_reported() -> None:
    assert (
        compare("image", np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)).reference_similarity == 0
    )
    same = np.repeat(unit(1), 4, axis=0)
    assert compare("image", same, same).reference_similarity == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("spoil", "complaint"), [
    (lambda rows: rows[:-1], r"the text graph gives features \(3, 16\), the original \(4, 16\)"),
    (lambda rows: rows * np.float32(1.01), "have a length of 1.01"),
    (lambda rows: np.where(np.arange(4)[:, None] == 1, np.nan, rows), "non-finite features for 1 items"),
    (lambda rows: np.where(np.arange(4)[:, None] < 2, np.inf, rows), "non-finite features for 2 items"),
])  # fmt: skip
def test_features_that_break_the_contract_are_refused(spoil, complaint: str) -> None:
    reference = unit(4)
    with pytest.raises(ExportError, match=complaint):
        compare("text", reference, spoil(reference).astype(np.float32))


def test_top1_counts_pictures_whose_nearest_class_is_the_same() -> None:
    texts = np.eye(4, dtype=np.float32)
    images = texts[[0, 1, 2, 3]]
    moved = texts[[0, 1, 3, 3]]
    classes = np.arange(4)
    assert top1_agreement((images, texts), (images, texts), classes) == 1
    assert top1_agreement((images, texts), (moved, texts), classes) == 0.75
    assert top1_agreement((images, texts), (moved, texts), np.array([0, 1])) == 1  # both lost their class


def test_two_comparisons_become_the_worse_one() -> None:
    one = TowerParity(items=3, min_cosine=0.9, max_difference=0.1, reference_similarity=0.5)
    other = TowerParity(items=4, min_cosine=0.8, max_difference=0.05)
    assert worse(one, other) == TowerParity(
        items=7, min_cosine=0.8, max_difference=0.1, reference_similarity=0.5
    )


@pytest.mark.parametrize(("precision", "cosine", "top1"), [
    ("fp32", 0.99999, 1.0), ("fp16", 0.999, 0.97), ("int8", 0.97, 0.97),
])  # fmt: skip
def test_gates_stand_where_they_are_stated(precision, cosine: float, top1: float) -> None:
    gate = GATES[precision]
    assert gate.refusals(report(image=cosine, text=cosine, top1=top1)) == []
    assert len(gate.refusals(report(image=cosine - 1e-6))) == 1
    assert len(gate.refusals(report(text=cosine - 1e-6))) == 1
    assert len(gate.refusals(report(top1=top1 - 1e-3))) == 1


def test_a_gate_refuses_what_is_no_number() -> None:
    [refusal] = GATES["fp32"].refusals(report(image=float("nan")))
    assert refusal.startswith("smallest image cosine nan is below")


def test_refusals_give_the_figures() -> None:
    refusals = GATES["int8"].refusals(report(text=0.5, top1=0.25))
    assert refusals == [
        "smallest text cosine 0.5000000 is below 0.97 (largest difference 2.50e-01)",
        "top-1 agreement 25.00% is below 97%",
    ]
