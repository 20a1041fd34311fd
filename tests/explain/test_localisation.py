"""Scores against a mask: hand numbers, brute force over ties, chance and perfection."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.explain import LOCALISATION, bootstrap_interval, pointing_game, spearman
from tests.explain.networks import rank_correlation

H, W = 3, 4
AREA = 5 / 12
MASK = np.zeros((H, W), bool)
MASK.ravel()[[0, 1, 4, 5, 9]] = True


def score(name, a, mask=MASK):
  return LOCALISATION[name](jnp.asarray(a, jnp.float32)[None], jnp.asarray(mask)[None])


def tied(seed=0):
  """Few different values, negative ones among them."""
  return np.random.default_rng(seed).integers(-1, 4, size=(H, W)).astype(float)


@pytest.mark.parametrize('name', LOCALISATION)
@pytest.mark.parametrize('level', [0.0, 0.1, -3.0, np.nan])
def test_a_constant_map_scores_exactly_chance(name, level):
  got = score(name, np.full((H, W), level))
  assert float(got.value[0]) == float(got.chance[0])
  assert bool(got.valid[0])
  want = {'auroc': 0.5, 'energy_lift': 1.0}.get(name, AREA)
  np.testing.assert_allclose(got.chance, want, rtol=1e-6)
  assert float(got.gain[0]) == 0


@pytest.mark.parametrize('name', LOCALISATION)
def test_the_mask_itself_is_perfect(name):
  want = 1 / AREA if name == 'energy_lift' else 1
  np.testing.assert_allclose(score(name, MASK).value, want, rtol=1e-6)
  np.testing.assert_allclose(score(name, 7.0 * MASK, MASK[..., None]).value, want, rtol=1e-6)


@pytest.mark.parametrize('name', LOCALISATION)
@pytest.mark.parametrize('full', [False, True])
def test_an_empty_mask_is_not_valid_and_nothing_is_nan(name, full):
  got = score(name, tied(), np.full((H, W), full))
  assert all(np.isfinite(part).all() for part in jax.tree.leaves(got))
  assert bool(got.valid[0]) == (full and name != 'auroc')
  if not full:
    assert float(got.value[0]) == float(got.chance[0])


def brute(name, a, mask):
  """The definition, over all orders of equal pixels or all thresholds."""
  a, mask = a.ravel(), mask.ravel()
  if name == 'pointing_game':
    return mask[a == a.max()].mean()
  if name == 'energy':
    return np.maximum(a, 0)[mask].sum() / np.maximum(a, 0).sum()
  if name == 'energy_lift':
    return brute('energy', a, mask) / mask.mean()
  if name == 'auroc':
    pairs = itertools.product(a[mask], a[~mask])
    return np.mean([(i > j) + (i == j) / 2 for i, j in pairs])
  if name == 'average_precision':
    recall, total = 0.0, 0.0
    for t in sorted(set(a))[::-1]:
      now = (mask & (a >= t)).sum() / mask.sum()
      total += (now - recall) * mask[a >= t].mean()
      recall = now
    return total
  if name == 'best_iou':
    return max((mask & (a >= t)).sum() / (mask | (a >= t)).sum() for t in set(a))
  if name == 'mean_iou':
    return (mask & (a >= a.mean())).sum() / (mask | (a >= a.mean())).sum()
  rng = np.random.default_rng(0)
  tops = [np.lexsort((rng.random(a.size), -a))[: mask.sum()] for _ in range(4000)]
  return np.mean([mask[top].mean() for top in tops])


@pytest.mark.parametrize('name', LOCALISATION)
def test_ties_by_brute_force(name):
  maps = np.stack([tied(seed) for seed in range(6)])
  masks = np.random.default_rng(5).uniform(size=maps.shape) < 0.4
  got = LOCALISATION[name](jnp.asarray(maps, jnp.float32), jnp.asarray(masks))
  want = [brute(name, a, m) for a, m in zip(maps, masks, strict=True)]
  np.testing.assert_allclose(got.value, want, atol=0.02 if name == 'rank_accuracy' else 1e-6)


def test_rank_accuracy_by_hand():
  """Two of the largest are sure, one of them marked; one of three equals is left, two marked."""
  a = [[3.0, 4.0, 1.0, 1.0, 1.0, 0.0]]
  mask = np.array([[True, False, True, True, False, False]])
  np.testing.assert_allclose(score('rank_accuracy', a, mask).value, (1 + 2 / 3) / 3, rtol=1e-6)


def test_pointing_beside_the_object():
  a = np.zeros((H, W))
  a[0, 3] = 1
  maps, masks = jnp.asarray(a)[None], jnp.asarray(MASK)[None]
  for tolerance, hit, count in ((0, 0, 5), (1, 0, 9), (2, 1, 12)):
    got = pointing_game(maps, masks, tolerance=tolerance)
    assert (float(got.value[0]), round(float(got.chance[0]) * 12)) == (hit, count)


def test_shapes_must_agree():
  with pytest.raises(ValueError, match='must have the shape'):
    LOCALISATION['auroc'](jnp.zeros((1, 2, 3)), jnp.zeros((1, 3, 2)))


def test_spearman():
  a = np.stack([tied(seed) for seed in range(5)])
  b = np.stack([tied(seed) for seed in range(5, 10)])
  value, valid = spearman(jnp.asarray(a), jnp.asarray(b))
  want = [rank_correlation(x, y) for x, y in zip(a, b, strict=True)]
  np.testing.assert_allclose(value, want, atol=1e-6)
  assert valid.all()
  same, _ = spearman(jnp.asarray(a), jnp.asarray(2 * a - 1))
  assert (np.asarray(same) == 1).all()
  flat = jnp.zeros_like(a)
  assert [part.tolist() for part in spearman(flat, jnp.asarray(a))] == [[0.0] * 5, [False] * 5]
  nothing = jnp.full_like(a, jnp.nan)
  for one, two in (
    (nothing, nothing),
    (nothing, jnp.asarray(a)),
    (flat, flat.at[:, 0].set(jnp.inf)),
  ):
    assert [part.tolist() for part in spearman(one, two)] == [[0.0] * 5, [False] * 5]
  assert [part.tolist() for part in spearman(flat, flat + 1)] == [[1.0] * 5, [True] * 5]


def test_the_bootstrap_interval_is_the_normal_one_for_many_images():
  values = np.random.default_rng(0).normal(size=400)
  valid = np.arange(400) < 300
  got = bootstrap_interval(jax.random.key(0), jnp.asarray(values), jnp.asarray(valid), level=0.9)
  mean, error = values[:300].mean(), values[:300].std() / 300**0.5
  assert got.count == 300
  np.testing.assert_allclose(got.mean, mean, atol=1e-6)
  np.testing.assert_allclose(
    [got.low, got.high], mean + 1.645 * error * np.array([-1, 1]), atol=0.01
  )
  with pytest.raises(ValueError, match='no image is valid'):
    bootstrap_interval(jax.random.key(0), jnp.zeros(2), jnp.zeros(2, bool))
