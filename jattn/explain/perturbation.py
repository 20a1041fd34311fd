"""What becomes of the logit when parts of the image are covered."""

import jax
import jax.numpy as jnp
import numpy as np

from jattn.explain.subject import Subject, each, share, total


def occlusion(
  subject: Subject,
  *,
  window: int | None = None,
  stride: int | None = None,
  baseline: jax.Array | float = 0.0,
  images_at_once: int = 128,
) -> jax.Array:
  """``S(x) - S(x with a window covered)``, mean over the windows that cover a pixel: [B, H, W].

  Signed: above zero where covering lowers the logit. Zeiler & Fergus 2013, arXiv 1311.2901. Windows
  begin every ``stride`` pixels from the top left; the last of a row or column is cut at the border.

  Args:
    subject: what is explained.
    window: side of the square, in pixels; None is an eighth of the shorter side.
    stride: between windows, in pixels, at most ``window``; None is half a window.
    baseline: what covers, a number or what broadcasts to [B, H, W, C].
    images_at_once: about how many images are looked at in one call.

  Raises:
    ValueError: ``window`` is not in 1..min(H, W), or ``stride`` not in 1..window.
  """
  height, width = subject.images.shape[1:3]
  window = max(1, min(height, width) // 8) if window is None else window
  stride = max(1, window // 2) if stride is None else stride
  if not 1 <= window <= min(height, width):
    raise ValueError(f'{window=} must be in 1..{min(height, width)}')
  if not 1 <= stride <= window:
    raise ValueError(f'{stride=} must be in 1..{window=}: some pixels would never be covered')
  rows, columns = _bands(height, window, stride), _bands(width, window, stride)
  drops = drops_under(subject, rows, columns, baseline=baseline, images_at_once=images_at_once)
  rows, columns = jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)
  times = rows.sum(0)[:, None] * columns.sum(0)[None]
  return jnp.einsum('byx,yh,xw->bhw', drops, rows, columns) / times[None]


def drops_under(
  subject: Subject,
  rows: np.ndarray,
  columns: np.ndarray,
  *,
  baseline: jax.Array | float = 0.0,
  images_at_once: int = 128,
) -> jax.Array:
  """``S(x) - S(x with a window covered)`` for every window of a grid: [B, Y, X].

  Args:
    subject: what is explained.
    rows: bool [Y, H], the rows that a window covers.
    columns: bool [X, W], the columns.
    baseline: what covers.
    images_at_once: about how many images are looked at in one call.
  """
  images = subject.images
  cover = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)
  rows, columns = jnp.asarray(rows), jnp.asarray(columns)
  across = len(columns)

  def covered(numbers: jax.Array) -> jax.Array:
    inside = rows[numbers // across][:, :, None] & columns[numbers % across][:, None]
    return subject.scores(jnp.where(inside[:, None, :, :, None], cover[None], images[None]))

  count = len(rows) * across
  at_once = share(images_at_once, len(images))
  drops = subject.scores(images)[None] - each(covered, count, at_once=at_once)
  return drops.T.reshape(len(images), len(rows), across)


def rise(
  subject: Subject,
  *,
  samples: int = 2000,
  cells: int = 7,
  probability: float = 0.5,
  baseline: jax.Array | float = 0.0,
  images_at_once: int = 128,
) -> jax.Array:
  """``mean_n p(x m_n + x0 (1 - m_n)) m_n / E[m]``, p the target's probability: [B, H, W], >= 0.

  Masks m are Bernoulli numbers on ``cells`` x ``cells`` places, enlarged bilinearly to one cell
  more than the image and shifted at random. Petsiuk et al. 2018 (RISE), arXiv 1806.07421, with
  4,000 to 8,000 masks. The mean of a pixel's values over many masks is at most one. Needs a key;
  masks are drawn as they are used and shared by the images of a batch, so that an image's map does
  not depend on its neighbours.

  Args:
    subject: what is explained.
    samples: number of masks.
    cells: places on a side.
    probability: that a place is kept, E[m].
    baseline: x0, a number or what broadcasts to [B, H, W, C].
    images_at_once: about how many images are looked at in one call.

  Raises:
    ValueError: there is no key, or a setting is outside its range.
  """
  if samples < 1 or cells < 1 or not 0 < probability <= 1:
    raise ValueError(f'{samples=}, {cells=} must be positive and {probability=} in (0, 1]')
  key, images = subject.draw(), subject.images
  start = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)

  def weighed(numbers: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    masks = jax.vmap(lambda key: _mask(key, images.shape[1:3], cells, probability))(keys)
    part = masks[:, None, :, :, None].astype(images.dtype)
    seen = subject.logits(part * images[None] + (1 - part) * start[None])
    return subject.pick(jax.nn.softmax(seen))[:, :, None, None] * masks[:, None]

  at_once = share(images_at_once, len(images))
  return total(weighed, samples, at_once=at_once) / (samples * probability)


def _mask(key: jax.Array, size: tuple[int, int], cells: int, probability: float) -> jax.Array:
  """One mask of RISE, [*size], in 0..1."""
  places, shift = jax.random.split(key)
  cell = [-(-length // cells) for length in size]
  small = jax.random.bernoulli(places, probability, (cells, cells)).astype(jnp.float32)
  large = jax.image.resize(small, [(cells + 1) * side for side in cell], 'bilinear')
  start = jax.random.randint(shift, (2,), 0, jnp.asarray(cell))
  return jax.lax.dynamic_slice(large, start, size)


def _bands(length: int, window: int, stride: int) -> np.ndarray:
  """bool [count, length]: windows along one axis, the last one cut."""
  starts = np.arange(-(-(length - window) // stride) + 1)[:, None] * stride
  place = np.arange(length)[None]
  return (place >= starts) & (place < starts + window)
