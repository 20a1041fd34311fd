"""Whether a map marks what the network uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.explain import attention_faithfulness, covering_drops, explain, faithfulness
from tests.explain.networks import convolutional, predict, rank_correlation, transformer

TARGETS = jnp.array([2, 0])


def test_attention_faithfulness():
  """Against occlusion by whole cells."""
  model, variables, images = transformer()
  scores = attention_faithfulness(model, variables, images, TARGETS)
  assert list(scores) == [f'backbone/stage_0/block_{i}/attention/weights' for i in range(2)]
  drops = explain('occlusion', model, variables, images, TARGETS, window=4, stride=4)[:, ::4, ::4]
  maps = predict(model, variables, images).maps
  for path, score in scores.items():
    received = maps[path].weights.mean(axis=1)[:, 0, 1:]
    want = [rank_correlation(a, d) for a, d in zip(received, drops, strict=True)]
    np.testing.assert_allclose(score.value, want, atol=1e-6)
    assert score.valid.all()


def test_uniform_attention_is_not_valid():
  model, variables, images = convolutional()
  variables = jax.tree_util.tree_map_with_path(
    lambda path, leaf: 0 * leaf if 'query' in str(path) else leaf, variables
  )
  (score,) = attention_faithfulness(model, variables, images, TARGETS).values()
  assert score.value.tolist() == [0.0, 0.0]
  assert score.valid.tolist() == [False, False]


def test_a_model_without_maps_is_refused():
  with pytest.raises(ValueError, match='speaks of places'):
    attention_faithfulness(*convolutional(None), TARGETS)


def test_drops_are_those_of_occlusion_by_cells():
  model, variables, images = convolutional()
  drops = covering_drops(model, variables, images, TARGETS, cells=(2, 4), baseline=0.5)
  assert drops.shape == (2, 2, 4)
  height, width = (length // count for length, count in zip(images.shape[1:3], (2, 4), strict=True))
  covered = images.at[:, height:, 2 * width : 3 * width].set(0.5)
  scores = [predict(model, variables, x).logits[jnp.arange(2), TARGETS] for x in (images, covered)]
  np.testing.assert_allclose(drops[:, 1, 2], scores[0] - scores[1], atol=1e-6)
  with pytest.raises(ValueError, match='cells'):
    covering_drops(model, variables, images, TARGETS, cells=(2, 99))


def test_faithfulness_ranks_the_means_of_cells():
  drops = jnp.array([[[3.0, 1.0], [2.0, -1.0]]])
  means = np.array([[9.0, 2.0], [5.0, 1.0]])
  within = np.tile([[20.0, -20.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], (2, 2))  # of mean zero
  maps = jnp.asarray(np.kron(means, np.ones((3, 3))) + within)[None]
  assert faithfulness(maps, drops).value.tolist() == [1.0]
  assert faithfulness(-maps, drops).value.tolist() == [-1.0]
  crossed = jnp.asarray(np.kron(means[::-1], np.ones((3, 3))))[None]
  want = rank_correlation(means[::-1], drops[0])
  np.testing.assert_allclose(faithfulness(crossed, drops).value, want, atol=1e-6)


def test_faithfulness_of_a_constant_map_is_chance():
  drops = jnp.array([[[3.0, 1.0], [2.0, -1.0]], [[1.0, 1.0], [1.0, 1.0]]])
  constant = faithfulness(jnp.full((2, 5, 7), 0.1), drops)
  assert constant.value.tolist() == constant.chance.tolist() == [0.0, 0.0]
  assert constant.valid.tolist() == [True, False]
