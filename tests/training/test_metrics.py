"""Metrics against NumPy; masked rows add nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.training import Metrics, measure
from jattn.types import Batch

CLASSES = 7


@pytest.fixture(scope='module')
def measured():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(40, CLASSES)).astype(np.float32) * 3
  labels = rng.integers(0, CLASSES, 40).astype(np.int32)
  mask = rng.random(40) < 0.8
  noisy = logits.copy()
  noisy[~mask] = np.nan
  images = np.zeros((40, 1, 1, 3), np.float32)
  total = Metrics.zeros(CLASSES)
  one = jax.jit(measure)
  for part in (slice(0, 15), slice(15, 40)):
    total = total + one(jnp.asarray(noisy[part]), Batch(images[part], labels[part], mask[part]))
  return total, logits[mask].astype(np.float64), labels[mask]


def test_against_numpy(measured):
  total, logits, labels = measured
  got = total.result()
  n = len(labels)
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  rows = np.arange(n)
  predicted, confidence = p.argmax(1), p.max(1)
  np.testing.assert_allclose(got['accuracy'], (predicted == labels).mean(), atol=1e-7)
  top5 = [labels[i] in np.argsort(-p[i])[:5] for i in rows]
  np.testing.assert_allclose(got['top5_accuracy'], np.mean(top5), atol=1e-7)
  np.testing.assert_allclose(got['nll'], -np.log(p[rows, labels]).mean(), rtol=1e-5)
  np.testing.assert_allclose(got['loss'], got['nll'], rtol=1e-6)
  truth = np.eye(CLASSES)[labels]
  np.testing.assert_allclose(got['brier'], ((p - truth) ** 2).sum(1).mean(), rtol=1e-5)
  ece = 0
  for low in range(15):
    inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
    if inside.any():
      gap = (predicted == labels)[inside].mean() - confidence[inside].mean()
      ece += inside.mean() * abs(gap)
  np.testing.assert_allclose(got['ece'], ece, atol=1e-6)
  assert got['count'] == n


def test_confusion_is_true_by_predicted(measured):
  total, logits, labels = measured
  confusion = np.zeros((CLASSES, CLASSES))
  for label, predicted in zip(labels, logits.argmax(1), strict=True):
    confusion[label, predicted] += 1
  np.testing.assert_array_equal(total.confusion, confusion)
  by_class = [(logits.argmax(1) == labels)[labels == c].mean() for c in range(CLASSES)]
  np.testing.assert_allclose(total.class_accuracy(), by_class, atol=1e-12)


def test_certain_and_right_is_calibrated_and_certain_and_wrong_is_not():
  labels = np.array([0, 1, 2, 0], np.int32)
  batch = Batch(np.zeros((4, 1, 1, 3)), labels, np.ones(4, bool))
  right = measure(100 * jax.nn.one_hot(labels, 3), batch).result()
  wrong = measure(100 * jax.nn.one_hot((labels + 1) % 3, 3), batch).result()
  assert (right['ece'], right['accuracy'], right['brier']) == (0, 1, 0)
  assert (wrong['ece'], wrong['accuracy'], wrong['brier']) == (1, 0, 2)


def test_a_calibrated_guess_has_no_calibration_error():
  # Probability 0.75 for class 0, which is right three times of four.
  logits = jnp.log(jnp.full((4, 2), 0.25).at[:, 0].set(0.75))
  batch = Batch(np.zeros((4, 1, 1, 3)), np.array([0, 0, 0, 1], np.int32), np.ones(4, bool))
  np.testing.assert_allclose(measure(logits, batch).result()['ece'], 0, atol=1e-6)


def test_label_smoothing_moves_the_loss_and_not_the_nll():
  logits = jnp.array([[2.0, 0.0]])
  batch = Batch(np.zeros((1, 1, 1, 3)), np.array([0], np.int32), np.ones(1, bool))
  got = measure(logits, batch, label_smoothing=0.2).result()
  log_p = np.log([np.e**2 / (np.e**2 + 1), 1 / (np.e**2 + 1)])
  np.testing.assert_allclose(got['nll'], -log_p[0], rtol=1e-6)
  np.testing.assert_allclose(got['loss'], -0.9 * log_p[0] - 0.1 * log_p[1], rtol=1e-6)


def test_nothing_measured_is_nan_and_no_error():
  got = Metrics.zeros(3).result()
  assert np.isnan(got['accuracy'])
  assert got['count'] == 0


def test_of_equal_logits_the_first_five_are_the_top_five_and_nothing_is_behind_nan():
  batch = Batch(jnp.zeros((4, 1, 1, 3)), jnp.array([0, 4, 5, 8]), jnp.ones(4, bool))
  assert measure(jnp.zeros((4, 9)), batch).result()['top5_accuracy'] == 0.5
  assert measure(jnp.full((4, 9), jnp.nan), batch).result()['top5_accuracy'] == 0


def test_a_class_that_is_impossible_costs_nothing_where_it_is_not_the_label():
  batch = Batch(jnp.zeros((1, 1, 1, 3)), jnp.array([0]), jnp.ones(1, bool))
  result = measure(jnp.array([[0.0, 0.0, -jnp.inf]]), batch).result()
  assert result['loss'] == pytest.approx(np.log(2))
