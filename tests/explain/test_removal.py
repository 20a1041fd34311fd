"""Pixels taken away: exactly as many as it says, whatever the ties, and filled in as by SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.explain import deletion_and_insertion, impute, removal_ranks, road
from jattn.explain.removal import blur
from tests.explain.networks import Linear, moved, pictures, predict

KEY = jax.random.key(3)
H, W = 5, 7
FEW = {'steps': 4, 'images_at_once': 5}
FRACTIONS = (0.2, 0.6)


def mostly_zero(seed=0):
  """[2, H, W] maps with 62% zeros."""
  maps = np.random.default_rng(seed).uniform(size=(2, H * W))
  maps[:, np.random.default_rng(1).permutation(H * W)[: round(0.62 * H * W)]] = 0
  return jnp.asarray(maps.reshape(2, H, W), jnp.float32)


@pytest.fixture(scope='module')
def linear():
  model, images = Linear(), pictures(2, H, W, 3)
  return model, moved(model, images, scale=2.0), images


def test_exactly_k_pixels_go_at_every_k():
  maps = mostly_zero()
  ranks = np.asarray(removal_ranks(KEY, maps)).reshape(2, -1)
  for k in range(H * W + 1):
    assert ((ranks < k).sum(axis=1) == k).all()
  values = np.asarray(maps).reshape(2, -1)
  for image in range(2):
    assert (np.diff(values[image][np.argsort(ranks[image])]) <= 0).all()
  again, other = removal_ranks(KEY, maps), removal_ranks(jax.random.key(4), maps)
  assert (np.asarray(again).reshape(2, -1) == ranks).all()
  assert (np.asarray(other) != np.asarray(again)).any()
  zeros = ranks[0][values[0] == 0]
  assert (np.diff(zeros) < 0).any()  # equal values go in a drawn order, not from the top left


def probabilities(model, variables, images):
  logits = np.asarray(predict(model, variables, images).logits, np.float64)
  exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
  return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_deletion_and_insertion_are_a_loop(linear):
  model, variables, images = linear
  maps, targets = mostly_zero(), jnp.array([1, 2])
  settings = {**FEW, 'baseline': 0.5}
  curves = deletion_and_insertion(model, variables, images, maps, targets, key=KEY, **settings)
  ranks, blurred = np.asarray(removal_ranks(KEY, maps)), np.asarray(blur(images))
  for step, k in enumerate([0, 9, 18, 26, 35]):  # round(step * 35 / 4)
    gone = (ranks < k)[..., None]
    for curve, before, after in (
      (curves.deletion, images, 0.5),
      (curves.insertion, blurred, images),
    ):
      want = probabilities(model, variables, np.where(gone, after, before))
      np.testing.assert_allclose(curve[:, step], want[np.arange(2), targets], rtol=1e-5)
    np.testing.assert_allclose(curves.fractions[step], k / 35, rtol=1e-6)
  scores = curves.scores()
  area = np.trapezoid(curves.deletion, curves.fractions)
  np.testing.assert_allclose(scores['deletion'].value, area, rtol=1e-6)
  assert (scores['deletion'].higher_is_better, scores['insertion'].higher_is_better) == (
    False,
    True,
  )


@pytest.mark.parametrize('level', [1.0, np.nan])
def test_a_constant_map_scores_exactly_chance(linear, level):
  maps = jnp.full((2, H, W), level)
  curves = deletion_and_insertion(*linear, maps, jnp.array([1, 2]), key=KEY, **FEW)
  for score in curves.scores().values():
    assert (score.value == score.chance).all()
  score = road(*linear, maps, key=KEY, fractions=FRACTIONS)
  assert (score.value == score.chance).all()


def test_the_best_order_of_a_linear_model_beats_chance(linear):
  """Contributions to the target's logit, largest first, bring it down the fastest."""
  model, variables, images = linear
  target = predict(model, variables, images).logits.argmax(-1)
  kernel = np.asarray(variables['params']['kernel'])
  maps = jnp.asarray((images * np.moveaxis(kernel[..., target], -1, 0)).sum(-1))
  curves = deletion_and_insertion(model, variables, images, maps, target, key=KEY, **FEW)
  scores = curves.scores()
  assert (scores['deletion'].gain > 0).all()
  assert (scores['insertion'].gain > 0).all()


def test_imputation_is_scipy_s():
  sparse = pytest.importorskip('scipy.sparse')
  from scipy.sparse.linalg import spsolve

  images = pictures(2, 12, 10, 3)
  removed = np.random.default_rng(0).uniform(size=(2, 12, 10)) < 0.7
  removed[1, 2:11, :9] = True  # a hole as well as scattered pixels
  got = np.asarray(impute(images, jnp.asarray(removed)))
  for image, gone, filled in zip(np.asarray(images, float), removed, got, strict=True):
    system, right = sparse.lil_matrix((120, 120)), np.zeros((120, 3))
    for y, x in np.ndindex(12, 10):
      i = y * 10 + x
      if not gone[y, x]:
        system[i, i], right[i] = 1, image[y, x]
        continue
      for dy, dx in np.ndindex(3, 3):
        v, u = y + dy - 1, x + dx - 1
        if (dy, dx) == (1, 1) or not (0 <= v < 12 and 0 <= u < 10):
          continue
        weight = 1 / 6 if dy == 1 or dx == 1 else 1 / 12
        system[i, i] += weight
        system[i, v * 10 + u] -= weight
    want = spsolve(system.tocsc(), right).reshape(12, 10, 3)
    np.testing.assert_allclose(filled, want, atol=1e-3)
    assert (filled[~gone] == image.astype(np.float32)[~gone]).all()
  # Nothing known: nothing to fill in from, and still a number.
  assert (impute(images, jnp.ones((2, 12, 10), bool)) == 0).all()


def test_road_counts_what_is_still_predicted(linear):
  model, variables, images = linear
  maps = mostly_zero()
  for order in ('most', 'least'):
    got = road(model, variables, images, maps, key=KEY, fractions=FRACTIONS, order=order, noise=0.0)
    ranks = removal_ranks(jax.random.split(KEY)[0], maps)
    ranks = ranks if order == 'most' else H * W - 1 - ranks
    target = model.apply(variables, images, train=False).logits.argmax(-1)
    right = [
      model.apply(variables, impute(images, ranks < round(f * H * W)), train=False).logits.argmax(
        -1
      )
      == target
      for f in FRACTIONS
    ]
    assert got.value.tolist() == np.mean(right, axis=0).tolist()
    assert got.higher_is_better == (order == 'least')


def test_blur_is_a_gaussian():
  image = jnp.zeros((1, 21, 21, 1)).at[0, 10, 10].set(1.0)
  bell = np.exp(-(np.arange(-5, 6) ** 2) / 50)
  want = np.outer(bell, bell) / bell.sum() ** 2
  np.testing.assert_allclose(blur(image)[0, 5:16, 5:16, 0], want, rtol=1e-5)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    ((deletion_and_insertion, {'steps': 0}), 'steps=0'),
    ((deletion_and_insertion, {'images_at_once': 0}), 'images_at_once=0'),
    ((road, {'order': 'first'}), "order='first'"),
    ((road, {'fractions': (0.5, 1.5)}), 'must be in 0..1'),
  ],
)
def test_a_wrong_call_is_named(linear, call, message):
  function, settings = call
  with pytest.raises(ValueError, match=message):
    function(*linear, mostly_zero(), key=KEY, **settings)
  with pytest.raises(ValueError, match='must have the size'):
    function(*linear, mostly_zero()[:, 1:], key=KEY)
