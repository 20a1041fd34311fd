"""Metrics as sums over examples, divided once at the end."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jattn.types import Batch

NUM_BINS = 15


@flax.struct.dataclass
class Metrics:
  """Sums over the unmasked examples; two of them add by ``+``.

  Attributes:
    count: examples.
    loss: cross-entropy against the smoothed labels.
    nll: negative log-likelihood of the true class.
    brier: squared distance between probabilities and the one-hot truth.
    top1, top5: how many had the true class among the 1 or 5 most likely (all of them below 5
      classes).
    bins: [3, 15], in bins of equal width of the largest probability: examples, probability,
      correct.
    confusion: [L, L], true class by predicted class.
  """

  count: jax.Array
  loss: jax.Array
  nll: jax.Array
  brier: jax.Array
  top1: jax.Array
  top5: jax.Array
  bins: jax.Array
  confusion: jax.Array

  @classmethod
  def zeros(cls, num_classes: int) -> 'Metrics':
    """The sums over nothing."""
    zero = jnp.zeros((), jnp.float32)
    return cls(
      *[zero] * 6,
      bins=jnp.zeros((3, NUM_BINS), jnp.float32),
      confusion=jnp.zeros((num_classes, num_classes), jnp.float32),
    )

  def __add__(self, other: 'Metrics') -> 'Metrics':
    return jax.tree.map(jnp.add, self, other)

  def result(self) -> dict[str, float]:
    """The means: accuracy, top5_accuracy, loss, nll, brier, ece (in [0, 1]) and the count.

    ECE is Guo et al. 2017, arXiv 1706.04599: the mean over bins, by size, of |accuracy -
    confidence|. Without any example every mean is NaN.
    """
    sums = jax.tree.map(lambda x: np.asarray(x, np.float64), self)
    with np.errstate(invalid='ignore'):
      _, confidence, correct = sums.bins
      return {
        'accuracy': float(sums.top1 / sums.count),
        'top5_accuracy': float(sums.top5 / sums.count),
        'loss': float(sums.loss / sums.count),
        'nll': float(sums.nll / sums.count),
        'brier': float(sums.brier / sums.count),
        'ece': float(np.abs(correct - confidence).sum() / sums.count),
        'count': int(sums.count),
      }

  def class_accuracy(self) -> np.ndarray:
    """[L] accuracy by true class; NaN for a class without examples."""
    confusion = np.asarray(self.confusion, np.float64)
    with np.errstate(invalid='ignore'):
      return np.diag(confusion) / confusion.sum(axis=1)


def measure(logits: jax.Array, batch: Batch, *, label_smoothing: float = 0.0) -> Metrics:
  """Metrics of one batch; masked rows add nothing, whatever their logits.

  Args:
    logits: [B, L].
    batch: labels [B] and mask [B]; the images are not read.
    label_smoothing: mass that ``loss`` spreads evenly over the classes (arXiv 1512.00567).
  """
  num_classes = logits.shape[-1]
  mask = batch.mask
  logits = jnp.where(mask[:, None], logits.astype(jnp.float32), 0.0)
  truth = jax.nn.one_hot(batch.labels, num_classes, dtype=jnp.float32)
  log_probabilities = jax.nn.log_softmax(logits)
  probabilities = jnp.exp(log_probabilities)
  predicted = jnp.argmax(logits, axis=-1)
  confidence = jnp.max(probabilities, axis=-1)
  own = jnp.take_along_axis(logits, batch.labels[:, None], axis=-1)
  # Of equals the first is ahead, as for argmax, and nothing is behind NaN.
  before = jnp.arange(num_classes)[None] < batch.labels[:, None]
  rank = jnp.sum(jnp.where(before, ~(logits < own), ~(logits <= own)), axis=-1)
  labels = smooth(truth, label_smoothing)
  losses = jnp.where(labels > 0, labels * log_probabilities, 0)  # 0 log 0 is zero
  chosen = jax.nn.one_hot(predicted, num_classes, dtype=jnp.float32)
  correct = predicted == batch.labels
  # A confidence of exactly one belongs to the last bin.
  bin_of = jnp.minimum((confidence * NUM_BINS).astype(jnp.int32), NUM_BINS - 1)

  def total(values: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(mask, values, 0).astype(jnp.float32))

  kept = mask.astype(jnp.float32)
  rows = jnp.stack([kept, kept * confidence, kept * correct])
  return Metrics(
    count=total(kept),
    loss=total(-jnp.sum(losses, axis=-1)),
    nll=total(-jnp.take_along_axis(log_probabilities, batch.labels[:, None], axis=-1)[:, 0]),
    brier=total(jnp.sum(jnp.square(probabilities - truth), axis=-1)),
    top1=total(correct),
    top5=total(rank < 5),
    bins=rows @ jax.nn.one_hot(bin_of, NUM_BINS, dtype=jnp.float32),
    confusion=jnp.einsum('bt,bp->tp', truth * kept[:, None], chosen),
  )


def smooth(labels: jax.Array, amount: float) -> jax.Array:
  """Label smoothing: ``(1 - amount) y + amount / L`` on [B, L] labels; the mass stays one."""
  return (1 - amount) * labels + amount / labels.shape[-1]
