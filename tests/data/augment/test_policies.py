import jax
import numpy as np
import pytest

from jattn.data.augment import OPERATIONS, operate, policies
from tests.data.augment.test_composition import COMPILED

N, B = 3, 4000
DRAW = jax.jit(
  policies.draw_rand_augment, static_argnums=1, static_argnames=('magnitude', 'std', 'variant')
)
PAPER = (
  'identity auto_contrast equalize rotate posterize solarize color contrast brightness sharpness '
  'shear_x shear_y translate_x translate_y'
).split()


def drawn(**settings):
  settings = {'magnitude': 7.0, 'std': 0.0, 'variant': 'paper', **settings}
  operation, argument = DRAW(jax.random.key(1), (N, B), **settings)
  names = np.array(OPERATIONS)[np.asarray(operation)]
  return names, np.asarray(argument)


def values(names, argument, name):
  return np.unique(argument[names == name].round(4)).tolist()


def test_the_paper_draws_fourteen_operations_evenly():
  names, _ = drawn()
  found, counts = np.unique(names, return_counts=True)
  assert sorted(found) == sorted(PAPER)
  np.testing.assert_allclose(counts / names.size, 1 / 14, atol=0.01)


@pytest.mark.parametrize('variant', ['timm', 'timm_increasing'])
def test_timm_draws_fifteen_and_leaves_half_of_them_out(variant):
  names, _ = drawn(variant=variant)
  found, counts = np.unique(names, return_counts=True)
  assert sorted(found) == sorted(OPERATIONS)
  share = dict(zip(found, counts / names.size, strict=True))
  assert abs(share.pop('identity') - 0.5) < 0.02
  np.testing.assert_allclose(list(share.values()), 1 / 30, atol=0.008)


# Magnitude 7 of 10 by hand: 0.7 x 30 degrees, and so on.
EITHER_WAY = {
  'rotate': 21.0,
  'shear_x': 0.21,
  'shear_y': 0.21,
  'translate_x': 0.315,
  'translate_y': 0.315,
}


@pytest.mark.parametrize(
  ('variant', 'wanted'),
  [
    # 0.7 x 1.8 + 0.1; int(0.7 x 4); int(0.7 x 256)
    ('paper', {'color': [1.36], 'sharpness': [1.36], 'posterize': [2], 'solarize': [179]}),
    ('timm', {'brightness': [1.36], 'posterize': [2], 'solarize': [179], 'solarize_add': [77]}),
    # 1 +- 0.7 x 0.9; 4 - 2; 256 - 179
    ('timm_increasing', {'contrast': [0.37, 1.63], 'posterize': [2], 'solarize': [77]}),
  ],
)
def test_strengths_of_the_variants(variant, wanted):
  names, argument = drawn(variant=variant)
  for name, expected in wanted.items():
    assert values(names, argument, name) == pytest.approx(expected), name
  for name, expected in EITHER_WAY.items():
    assert values(names, argument, name) == pytest.approx([-expected, expected])
    assert 0.4 < (argument[names == name] > 0).mean() < 0.6


def test_magnitudes_scatter_and_stay_in_range():
  names, argument = drawn(magnitude=9.0, std=1.5)
  degrees = np.abs(argument[names == 'rotate'])
  assert degrees.max() == pytest.approx(30)
  # Magnitudes above 10 are cut to 10: the median is that of the normal distribution.
  assert np.median(degrees) == pytest.approx(27, abs=0.8)
  below = degrees[degrees < 27]
  assert np.sqrt(np.mean((below - 27) ** 2)) == pytest.approx(1.5 * 3, rel=0.15)


def test_auto_augment_draws_a_pair_of_the_table():
  operation, argument = jax.jit(policies.draw_auto_augment, static_argnums=1)(jax.random.key(0), B)
  names, argument = np.array(OPERATIONS)[np.asarray(operation)], np.asarray(argument)
  table = policies._CIFAR10
  assert [len(table), {len(pair) for pair in table}] == [25, {2}]
  for row in (0, 1):
    found, counts = np.unique(names[row], return_counts=True)
    share = dict(zip(found, counts / B, strict=True))
    for name in set(OPERATIONS) - {'identity'}:
      wanted = sum(pair[row][1] for pair in table if pair[row][0] == name) / 25
      assert share.get(name, 0) == pytest.approx(wanted, abs=0.015), name
  # Both of a sub-policy come together: translate_y 0.9 then translate_y 0.7 is one of 25.
  both = (names == 'translate_y').all(axis=0).mean()
  assert both == pytest.approx(0.9 * 0.7 / 25, abs=0.008)
  # Magnitudes 9 and 3; 6 and 3; 7; and 2, 8, 5 and 3, of 9 each.
  far = 150 / 331
  assert values(names, np.abs(argument), 'translate_y') == pytest.approx([far / 3, far], abs=1e-4)
  first = values(names[:1], argument[:1], 'brightness')
  assert first == pytest.approx([0.4, 0.7, 1.3, 1.6])
  assert values(names, argument, 'posterize') == [5]
  assert values(names, argument, 'solarize') == pytest.approx(
    sorted(256 * (1 - m / 9) for m in (2, 8, 5, 3)), abs=1e-3
  )


def test_layers_are_one_operation_after_another(images, labels):
  key = jax.random.key(5)
  shape = (2, len(images))
  operation, argument = DRAW(key, shape, magnitude=9.0, std=0.0, variant='paper')
  found, _ = COMPILED['rand_augment'](key, images, labels)
  step = jax.jit(operate)
  wanted = step(step(images, operation[0], argument[0]), operation[1], argument[1])
  np.testing.assert_allclose(found, wanted, atol=1.5 / 255)
  assert np.mean(np.abs(found - wanted) > 1e-3) < 0.02
