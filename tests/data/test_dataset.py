import itertools
import time

import numpy as np
import pytest

import jattn.data

N = {'train': 54, 'choose': 6, 'test': 23}


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  rng = np.random.default_rng(0)
  file = tmp_path_factory.mktemp('npz') / 'data.npz'
  np.savez(
    file,
    x_train=rng.integers(0, 256, (60, 10, 10, 3), np.uint8),
    y_train=rng.permutation(60) % 4,
    x_test=rng.integers(0, 256, (23, 10, 10, 3), np.uint8),
    y_test=rng.permutation(23) % 4,
  )
  return file


@pytest.fixture(scope='module', params=['memory', 'streamed'])
def dataset(request, path):
  return jattn.data.load(f'npz:{path}', in_memory=request.param == 'memory')


@pytest.fixture(scope='module')
def in_memory(path):
  return jattn.data.load(f'npz:{path}')


def take(batches, count):
  return list(itertools.islice(batches, count))


def assert_equal(one, other):
  assert len(one) == len(other)
  for a, b in zip(one, other, strict=True):
    for field in ('images', 'labels', 'mask'):
      x, y = getattr(a, field), getattr(b, field)
      assert x.dtype == y.dtype
      np.testing.assert_array_equal(x, y)


def test_facts(dataset):
  assert {split: dataset.num_examples(split) for split in N} == N
  assert (dataset.num_classes, dataset.size) == (4, 10)
  assert len(dataset.class_names) == 4
  assert '54 train' in repr(dataset)


def test_batches_follow_the_order(dataset, in_memory):
  images, labels = in_memory.arrays('train')
  for step, batch in enumerate(take(dataset.batches(batch_size=8, seed=5), 20)):
    indices = jattn.data.order(5, step, batch_size=8, num_examples=54)
    np.testing.assert_array_equal(batch.images, images[indices])
    np.testing.assert_array_equal(batch.labels, labels[indices])
    assert batch.images.dtype == np.uint8
    assert batch.labels.dtype == np.int32
    assert batch.mask.dtype == bool
    assert batch.mask.all()


def test_streamed_equals_memory_bit_for_bit(path, in_memory):
  streamed = jattn.data.load(f'npz:{path}', in_memory=False)
  assert (in_memory.in_memory, streamed.in_memory) == (True, False)
  for split in N:
    assert_equal(
      take(streamed.batches(split, batch_size=8, seed=1, start=3), 10),
      take(in_memory.batches(split, batch_size=8, seed=1, start=3), 10),
    )
    assert_equal(
      list(streamed.eval_batches(split, batch_size=8)),
      list(in_memory.eval_batches(split, batch_size=8)),
    )
  np.testing.assert_allclose(streamed.mean, in_memory.mean, rtol=1e-12)
  assert streamed.fingerprint == in_memory.fingerprint


def test_resuming_is_the_tail(dataset):
  whole = take(dataset.batches(batch_size=7, seed=2), 20)
  assert_equal(take(dataset.batches(batch_size=7, seed=2, start=13), 7), whole[13:])


@pytest.mark.parametrize('processes', [2, 4])
def test_process_slices_make_up_the_batch(dataset, processes):
  whole = take(dataset.batches(batch_size=8, seed=2, start=5), 9)
  parts = [
    take(
      dataset.batches(batch_size=8, seed=2, start=5, process_index=index, process_count=processes),
      9,
    )
    for index in range(processes)
  ]
  for step, batch in enumerate(whole):
    images = np.concatenate([part[step].images for part in parts])
    np.testing.assert_array_equal(images, batch.images)
    labels = np.concatenate([part[step].labels for part in parts])
    np.testing.assert_array_equal(labels, batch.labels)


@pytest.mark.parametrize(('batch_size', 'processes'), [(8, 1), (8, 4), (23, 1), (64, 4), (1, 1)])
def test_evaluation_sees_every_example_once(dataset, in_memory, batch_size, processes):
  images, labels = in_memory.arrays('test')
  parts = [
    list(
      dataset.eval_batches(
        'test', batch_size=batch_size, process_index=index, process_count=processes
      )
    )
    for index in range(processes)
  ]
  assert {len(part) for part in parts} == {-(-23 // batch_size)}
  seen_images, seen_labels = [], []
  for step in range(len(parts[0])):
    for part in parts:
      batch = part[step]
      assert batch.images.shape == (batch_size // processes, 10, 10, 3)
      seen_images.append(batch.images[batch.mask])
      seen_labels.append(batch.labels[batch.mask])
      assert not batch.images[~batch.mask].any()
      assert not batch.labels[~batch.mask].any()
  np.testing.assert_array_equal(np.concatenate(seen_images), images)
  np.testing.assert_array_equal(np.concatenate(seen_labels), labels)


def test_choose_is_held_out_of_train(in_memory, path):
  train, choose = (
    {image.tobytes() for image in in_memory.arrays(split)[0]} for split in ('train', 'choose')
  )
  assert len(train) == 54
  assert len(choose) == 6
  assert not train & choose
  other = jattn.data.load(f'npz:{path}', seed_of_split=1)
  assert {image.tobytes() for image in other.arrays('choose')[0]} != choose
  np.testing.assert_array_equal(other.arrays('test')[0], in_memory.arrays('test')[0])


def test_mean_and_std_are_of_train_and_exact(in_memory):
  images = in_memory.arrays('train')[0].astype(np.float64) / 255
  np.testing.assert_allclose(in_memory.mean, images.mean(axis=(0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(in_memory.std, images.std(axis=(0, 1, 2)), rtol=1e-12)


def test_arrays_cannot_be_spoiled_and_streamed_ones_are_refused(path, in_memory):
  with pytest.raises(ValueError, match='read-only'):
    in_memory.arrays('test')[0][0] = 0
  with pytest.raises(jattn.data.DataError, match='in_memory=True'):
    jattn.data.load(f'npz:{path}', in_memory=False).arrays('test')


def test_wrong_arguments(in_memory, path):
  with pytest.raises(ValueError, match='train, choose, test'):
    in_memory.batches('val', batch_size=4, seed=0)
  with pytest.raises(ValueError, match=r'batch_size=6.*process_count=4'):
    in_memory.batches(batch_size=6, seed=0, process_count=4)
  with pytest.raises(ValueError, match=r'process_index=2 must be in 0..1'):
    in_memory.eval_batches('test', batch_size=6, process_index=2, process_count=2)
  with pytest.raises(ValueError, match='seed=-1'):
    in_memory.batches(batch_size=6, seed=-1)
  no_choose = jattn.data.load(f'npz:{path}', choose_fraction=0)
  with pytest.raises(jattn.data.DataError, match="'choose' is empty"):
    no_choose.eval_batches('choose', batch_size=4)
  for wrong in (
    {'size': 0},
    {'eval_size': 0},
    {'crop_ratio': 0.0},
    {'choose_fraction': 1.0},
    {'on_bad_image': 'maybe'},
  ):
    with pytest.raises(ValueError, match=next(iter(wrong))):
      jattn.data.load(f'npz:{path}', **wrong)
  with pytest.raises(jattn.data.DataError, match='folder:PATH'):
    jattn.data.load('cifar10')


def test_worker_processes_give_the_same_batches(path, in_memory):
  streamed = jattn.data.load(f'npz:{path}', in_memory=False, workers=1)
  assert_equal(
    list(streamed.eval_batches('choose', batch_size=4)),
    list(in_memory.eval_batches('choose', batch_size=4)),
  )


def test_batches_cost_little_more_than_indexing():
  # Loose on purpose: a machine that does other work too must not turn this red; a permutation per
  # batch instead of per epoch does.
  dataset = jattn.data.load('digits')
  images, _ = dataset.arrays('train')
  indices = np.random.default_rng(0).integers(0, len(images), (100, 128))

  def timed(run):
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin

  plain = min(timed(lambda: [images[row] for row in indices]) for _ in range(5))
  ours = min(timed(lambda: take(dataset.batches(batch_size=128, seed=0), 100)) for _ in range(5))
  assert ours < 3 * plain


SQUARES = {'size': 12, 'eval_size': 8, 'crop_ratio': 0.8, 'resample': 'bicubic'}


def test_training_and_evaluation_have_their_own_squares(path, in_memory):
  """Whether in memory or streamed, from the stored 10 x 10: the numbers are those of `fit`."""
  held, streamed = (
    jattn.data.load(f'npz:{path}', in_memory=memory, **SQUARES) for memory in (True, False)
  )
  assert (held.size, held.eval_size) == (12, 8)
  assert held.fingerprint == streamed.fingerprint != in_memory.fingerprint
  np.testing.assert_allclose(held.mean, streamed.mean, rtol=1e-12)
  for split in N:
    assert_equal(
      take(streamed.batches(split, batch_size=8, seed=1), 3),
      take(held.batches(split, batch_size=8, seed=1), 3),
    )
    assert_equal(
      list(streamed.eval_batches(split, batch_size=8)), list(held.eval_batches(split, batch_size=8))
    )
  originals, _ = in_memory.arrays('test')
  for batch, first in zip(held.eval_batches('test', batch_size=8), (0, 8, 16), strict=True):
    for image, original in zip(batch.images[batch.mask], originals[first:], strict=False):
      expected = jattn.data.fit(original, 8, crop_ratio=0.8, resample='bicubic')
      np.testing.assert_array_equal(image, expected)
  images, _ = held.arrays('train')
  expected = jattn.data.fit(in_memory.arrays('train')[0][5], 12, resample='bicubic')
  np.testing.assert_array_equal(images[5], expected)
  assert held.arrays('test')[0].shape == (23, 8, 8, 3)


def test_only_what_a_split_needs_is_decoded_to_its_square(path, monkeypatch):
  decoded = []
  read = jattn.data.npz.Arrays.read

  def counted(self, indices, square):
    decoded.extend([square.size] * len(indices))
    return read(self, indices, square)

  monkeypatch.setattr(jattn.data.npz.Arrays, 'read', counted)
  jattn.data.load(f'npz:{path}', **SQUARES)
  assert (decoded.count(12), decoded.count(8)) == (N['train'], N['choose'] + N['test'])
