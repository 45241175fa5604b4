"""Training on FG's output, and the measure that it is judged by."""

import numpy as np
import pytest
import torch

from procserver.demo.training import FeatureRows, auc, item_rate


def brute_force(label, score):
    pairs = [(p, n) for p in score[label] for n in score[~label]]
    return sum((p > n) + 0.5 * (p == n) for p, n in pairs) / len(pairs)


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_auc_counts_ties_by_half(levels):
    rng = np.random.default_rng(levels)
    label = rng.random(120) < 0.3
    score = rng.integers(0, levels, 120) + label
    assert auc(label, score) == pytest.approx(brute_force(label, score))


def test_auc_of_one_class_says_nothing():
    assert auc(np.zeros(3, bool), np.arange(3)) == 0.5


def test_item_rate_is_smoothed_and_knows_unseen_items():
    item = np.array([0, 0, 0, 2])
    hit = np.array([True, True, False, False])
    rate = item_rate(item, hit)
    expected = [(2 + 5) / 13, 0.5, 5 / 11, 0.5, 0.5]
    assert rate.of(np.array([0, 1, 2, 3, 99])) == pytest.approx(expected)


def test_feature_rows_takes_neighbours_of_ragged_features():
    rows = FeatureRows(
        {
            "a.values": np.arange(6),
            "a.lengths": np.array([2, 0, 3, 1], np.int32),
            "b.values": np.arange(8.0).reshape(4, 2),
        }
    )
    taken = rows.take(1, 3)
    assert taken["a.values"].tolist() == [2, 3, 4]
    assert taken["a.lengths"].tolist() == [0, 3]
    torch.testing.assert_close(
        taken["b.values"], torch.tensor([[2.0, 3.0], [4.0, 5.0]], dtype=torch.float64)
    )


def test_the_model_beats_popularity(report):
    """By far more than chance: some 600 clicks and 200 orders are tested."""
    assert report.popular_ctr > 0.55
    assert report.ctr > report.popular_ctr + 0.12
    assert report.cvr > report.popular_cvr + 0.04


def test_the_report_prints_both(report):
    text = str(report)
    assert f"{report.ctr:.4f}" in text
    assert f"{report.popular_cvr:.4f}" in text
