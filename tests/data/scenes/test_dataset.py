"""Scenes as a dataset: the loader's contract, and names that are wrong."""

import dataclasses
import itertools

import numpy as np
import pytest

import jattn.data
from jattn.data import DataError
from jattn.data.scenes import Cluttered, Megapixel, parse

NAME = 'cluttered?size=60&clutter=4&train=300&choose=20&test=70'


@pytest.fixture(scope='module')
def memory(load):
  return load(NAME)


@pytest.fixture(scope='module')
def streamed(load):
  return load(NAME, in_memory=False)


def test_facts(memory, streamed):
  for dataset in (memory, streamed):
    assert [dataset.num_examples(split) for split in ('train', 'choose', 'test')] == [300, 20, 70]
    assert (dataset.size, dataset.num_classes) == (60, 10)
    assert dataset.class_names == tuple('0123456789')
    assert dataset.label == (
      'scenes:cluttered?size=60&clutter=4&train=300&choose=20&test=70&seed=0&sprites=npz'
    )
  assert (memory.in_memory, streamed.in_memory) == (True, False)
  assert memory.fingerprint == streamed.fingerprint
  facts = jattn.data.stream_fingerprint(memory, seed=0, batch_size=8)
  assert facts['dataset'] == memory.label


def test_images_are_those_of_the_scenes(memory, streamed, see):
  scene, images, _ = see('cluttered', 'test')
  found, labels = memory.arrays('test')
  np.testing.assert_array_equal(found, images[:70])
  np.testing.assert_array_equal(labels, scene.label[:70])
  # Batches of any size, in memory or rendered one by one.
  for dataset, batch_size in ((memory, 16), (streamed, 70)):
    batches = list(dataset.eval_batches('test', batch_size=batch_size))
    masks = np.concatenate([batch.mask for batch in batches])
    assert masks.sum() == 70
    np.testing.assert_array_equal(
      np.concatenate([batch.images for batch in batches])[masks], images[:70]
    )


def test_training_batches_follow_the_order(memory, streamed):
  images, labels = memory.arrays('train')
  for dataset in (memory, streamed):
    batches = itertools.islice(dataset.batches(batch_size=8, seed=5, start=3), 2)
    for step, batch in enumerate(batches, start=3):
      indices = jattn.data.order(5, step, batch_size=8, num_examples=300)
      np.testing.assert_array_equal(batch.images, images[indices])
      np.testing.assert_array_equal(batch.labels, labels[indices])


def test_moments(memory, streamed):
  images = memory.arrays('train')[0].astype(np.float64) / 255
  for dataset in (memory, streamed):
    np.testing.assert_allclose(dataset.mean, images.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, images.std(axis=(0, 1, 2)), rtol=1e-9)


def test_truth_of_examples(memory, see):
  _, _, expected = see('cluttered', 'test')
  chosen = np.array([5, 0, 69, 5])
  truth = memory.truth('test', chosen)
  for field in dataclasses.fields(truth):
    found = getattr(truth, field.name)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, getattr(expected, field.name)[chosen])
  assert memory.truth('test', []).boxes.shape == (0, 1, 4)
  with pytest.raises(ValueError, match=r"index 70 of split 'test' must be in 0..69"):
    memory.truth('test', [3, 70])


def test_no_sprite_and_no_scene_is_in_two_splits(memory):
  tables, scenes = {}, {}
  for split in ('train', 'choose', 'test'):
    sprites = np.asarray(memory.scenes(split).sprites.images)
    tables[split] = {picture.tobytes() for picture in sprites}
    assert len(tables[split]) == 60
    scenes[split] = {image.tobytes() for image in memory.arrays(split)[0]}
    assert len(scenes[split]) == memory.num_examples(split)
  for one, other in itertools.combinations(tables, 2):
    assert not tables[one] & tables[other]
    assert not scenes[one] & scenes[other]
    boxes = [memory.truth(split, range(20)).boxes for split in (one, other)]
    assert (boxes[0] != boxes[1]).any(), 'the same places'


def test_fingerprint_is_of_everything_that_matters(load, memory, tmp_path):
  assert load(NAME, in_memory=False, choose_fraction=0.3).fingerprint == memory.fingerprint
  for change in ('seed=1', 'clutter=5', 'train=301'):
    setting = change.partition('=')[0]
    kept = [part for part in NAME.partition('?')[2].split('&') if not part.startswith(setting)]
    other = load('cluttered?' + '&'.join([*kept, change]), in_memory=False)
    assert other.fingerprint != memory.fingerprint
  # More scenes are the same scenes and some more.
  other = load(NAME.replace('train=300', 'train=900'), in_memory=False)
  np.testing.assert_array_equal(other.truth('train', [7]).boxes, memory.truth('train', [7]).boxes)
  arrays = dict(np.load(load.file))
  arrays['x_choose'][3, 9, 9] ^= 1
  np.savez(tmp_path / 'other.npz', **arrays)
  name = f'scenes:{NAME}&sprites=npz:{tmp_path / "other.npz"}'
  other = jattn.data.load(name, in_memory=False)
  assert other.label == memory.label
  assert other.fingerprint != memory.fingerprint
  seeded = load(NAME + '&seed=1', in_memory=False)
  assert (seeded.truth('train', [7]).boxes != memory.truth('train', [7]).boxes).any()


def test_a_split_may_be_empty(load):
  dataset = load('paired?size=80&train=5&test=5&choose=0', in_memory=False)
  assert dataset.num_examples('choose') == 0
  with pytest.raises(DataError, match="'choose' is empty"):
    dataset.scenes('choose')


def test_parse():
  spec = parse('cluttered')
  assert (spec.recipe, spec.seed, spec.sprites) == (Cluttered(), 0, 'digits')
  spec = parse('megapixel?order=over&size=500&seed=7&test=10&sprites=tfds:mnist')
  assert spec.recipe == Megapixel(size=500, noise=6, order='over')
  assert (spec.seed, spec.sprites, spec.counts['test']) == (7, 'tfds:mnist', 10)
  assert Megapixel().noise == 50


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('clutered', "no kind of scene is called 'clutered'; did you mean 'cluttered'?"),
    ('cluttered?sise=60', "no setting of cluttered is called 'sise'; did you mean 'size'"),
    ('cluttered?size=', "size='' must be a whole number"),
    ('cluttered?size=6e1', "size='6e1' must be a whole number"),
    ('cluttered?size=-60', "size='-60' must be a whole number"),
    ('cluttered?', "after '?' come settings"),
    ('cluttered?size=27', 'size=27 must be in 28..1048576'),
    ('cluttered?size=60&size=60', 'size is set twice'),
    ('cluttered?train=0', 'train=0 must be in 1..'),
    ('cluttered?seed=2147483648', 'seed=2147483648 must be in 0..'),
    ('megapixel?size=159', 'size=159 must be in 160..'),
    ('megapixel?order=beside', "order='beside' must be 'under' or 'over'"),
    ('paired?size=71', 'size=71 must be in 72..'),
    ('shortcut?agreement=101', 'agreement=101 must be in 0..100'),
    ('cluttered?sprites=digts', "sprites: unknown dataset 'digts'"),
  ],
)
def test_wrong_names(name, message):
  with pytest.raises(DataError) as caught:
    jattn.data.load(f'scenes:{name}')
  assert str(caught.value).startswith(f'scenes:{name}: ')
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_wrong_sprites_and_settings_of_the_loader(load, tmp_path):
  images = np.random.default_rng(0).integers(0, 255, (20, 28, 28, 3), np.uint8)
  labels = np.arange(20) % 10

  def open_with(kind, **changes):
    arrays = {'x_train': images[..., 0], 'x_test': images[..., 0]}
    arrays |= {'y_train': labels, 'y_test': labels, **changes}
    np.savez(tmp_path / 'bad.npz', **arrays)
    jattn.data.load(f'scenes:{kind}sprites=npz:{tmp_path / "bad.npz"}', choose_fraction=0)

  with pytest.raises(DataError, match='must be grey'):
    open_with('cluttered?', x_train=images)
  with pytest.raises(DataError, match=r"split 'test' of the sprites .* has no '9'"):
    open_with('cluttered?', y_test=labels % 9)
  with pytest.raises(DataError, match=r"split 'choose' of the sprites .* has no '0'"):
    open_with('cluttered?choose=5&')
  for kind in ('paired', 'megapixel'):
    with pytest.raises(DataError, match='num_classes=1 of the sprites must be at least 2'):
      open_with(f'{kind}?', y_train=labels * 0, y_test=labels * 0)
  with pytest.raises(DataError, match=r'size=35 must be in 36\.\.'):
    open_with('shortcut?size=35&')
  for wrong, message in (
    ({'size': 32}, r'say the size in the name: scenes:cluttered\?size=32'),
    ({'eval_size': 32}, 'say the size in the name'),
    ({'crop_ratio': 0.9}, 'crop_ratio=0.9 must be 1'),
    ({'workers': 1}, 'workers=1 must be 0'),
  ):
    with pytest.raises(ValueError, match=message):
      load(NAME, **wrong)
  assert load(NAME, size=60, in_memory=False).size == 60
