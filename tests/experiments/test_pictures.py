"""Which map is drawn, and what it shows."""

import numpy as np
import pytest

from experiments import pictures
from jattn.types import AttentionMap


def position(weights, keys=None):
  weights = np.asarray(weights, np.float32)[None, None]
  return AttentionMap(weights, 'position', (1, 2), None if keys is None else np.asarray(keys))


def test_attention_received_leaves_out_what_a_class_token_receives():
  plain = position([[0.25, 0.75], [0.75, 0.25]])
  np.testing.assert_allclose(pictures.spatial(plain), [[[1, 1]]])
  # Three tokens, the first of class: the positions receive 0.1 + 0.3 + 0.1 and 0.3 + 0.5 + 0.7.
  token = position([[0.6, 0.1, 0.3], [0.2, 0.3, 0.5], [0.2, 0.1, 0.7]], [[-1, 0, 1]] * 3)
  np.testing.assert_allclose(pictures.spatial(token), [[[0.5, 1.5]]], rtol=1e-6)
  # A local map: each query sees one position and what is outside.
  local = position([[1.0, 0.0], [0.5, 0.5]], [[1, -1], [1, -1]])
  np.testing.assert_allclose(pictures.spatial(local), [[[0, 2]]])


def test_gates_without_positions_are_not_drawn(tmp_path):
  gate = AttentionMap(np.ones((1, 1, 1, 4), np.float32), 'gate', (1, 2))
  assert pictures.spatial(gate) is None
  images = np.zeros((1, 8, 8, 3), np.uint8)
  told = {'images': images, 'truth': ['a'], 'predicted': ['a']}
  assert not pictures.draw_attention(tmp_path / 'x.png', maps={'pool/gate': gate}, **told)
  assert not (tmp_path / 'x.png').exists()


def test_the_last_map_of_the_model_is_drawn(tmp_path, monkeypatch):
  """JAX hands maps out by the alphabet, in which block 9 comes after block 10."""
  drawn = []
  monkeypatch.setattr(pictures, 'REDUCTIONS', _Noted(drawn))
  plain, last = position([[0.5, 0.5]] * 2), AttentionMap(np.ones((1, 1, 1, 2)), 'pool', (1, 2))
  maps = {'backbone/block_10/w': last, 'backbone/block_9/w': plain}
  images = np.zeros((1, 8, 8, 3), np.uint8)
  told = {'images': images, 'truth': ['a'], 'predicted': ['a']}
  assert pictures.draw_attention(tmp_path / 'x.png', maps=maps, **told)
  assert drawn == ['pool']


@pytest.mark.parametrize(
  ('count', 'truth', 'predicted'),
  [
    (1, 'automobile', 'aeroplane'),
    (6, 'automobile', 'aeroplane'),
    (6, 'a class whose name is longer than the two pictures ' * 2, 'one\nin two lines'),
    (2, '$x_{', 'W' * 300),
  ],
)
def test_no_word_is_cut_off_and_none_lies_on_another(
  tmp_path, monkeypatch, count, truth, predicted
):
  figures = []
  monkeypatch.setattr(pictures.plt, 'close', figures.append)
  weights = np.full((count, 1, 16, 16), 1 / 16, np.float32)
  assert pictures.draw_attention(
    tmp_path / 'x.png',
    images=np.zeros((count, 8, 12, 3), np.uint8),
    maps={'attention/weights': AttentionMap(weights, 'position', (4, 4))},
    truth=[truth] * count,
    predicted=[predicted] * count,
  )
  (figure,) = figures
  figure.draw_without_rendering()
  *pairs, bar = figure.axes
  texts = [axis.title for axis in pairs] + [figure._suptitle, bar.yaxis.label]
  shown = texts[0].get_text()
  assert shown.startswith(truth[:4])
  assert predicted[:3] in shown
  boxes = [text.get_window_extent() for text in texts]
  assert len(boxes) == count + 2
  for index, box in enumerate(boxes):
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, texts[index]
    assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, texts[index]
    assert not any(box.overlaps(other) for other in boxes[:index]), texts[index]


class _Noted(dict):
  """Notes which kind of map a caption is asked for."""

  def __init__(self, drawn):
    super().__init__()
    self.drawn = drawn

  def __missing__(self, kind):
    self.drawn.append(kind)
    return kind
