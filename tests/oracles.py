"""The formulas again, in float64 NumPy, written by loops and from the papers alone."""

import math

import numpy as np


def attention_weights(q, k, *, bias=None, mask=None, scale=None):
  """[Q, M, D], [K, M', D] -> [M, Q, K]; one number at a time."""
  q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
  num_queries, num_heads, width = q.shape
  num_keys, num_key_heads, _ = k.shape
  scale = 1 / math.sqrt(width) if scale is None else scale
  out = np.zeros((num_heads, num_queries, num_keys))
  for m in range(num_heads):
    source = m // (num_heads // num_key_heads)
    for i in range(num_queries):
      scores = []
      for j in range(num_keys):
        score = scale * sum(q[i, m, d] * k[j, source, d] for d in range(width))
        if bias is not None:
          score += float(bias[m, i, j])
        allowed = mask is None or bool(mask[m, i, j])
        scores.append(score if allowed and score > -math.inf else None)
      allowed_scores = [s for s in scores if s is not None]
      if not allowed_scores:
        continue
      top = max(allowed_scores)
      total = sum(math.exp(s - top) for s in allowed_scores)
      for j, score in enumerate(scores):
        out[m, i, j] = 0.0 if score is None else math.exp(score - top) / total
  return out


def attend(q, k, v, **settings):
  """[Q, M, D], [K, M', D], [K, M', D'] -> [Q, M, D']."""
  weights = attention_weights(q, k, **settings)
  v = np.asarray(v, np.float64)
  num_heads, num_queries, num_keys = weights.shape
  out = np.zeros((num_queries, num_heads, v.shape[-1]))
  for m in range(num_heads):
    source = m // (num_heads // v.shape[1])
    for i in range(num_queries):
      for j in range(num_keys):
        out[i, m] += weights[m, i, j] * v[j, source]
  return out


def softmax(scores, mask=None):
  """Softmax over all of ``scores``, masked positions zero."""
  scores = np.asarray(scores, np.float64)
  mask = np.ones(scores.shape, bool) if mask is None else np.asarray(mask)
  out = np.zeros(scores.shape)
  if mask.any():
    exponentials = np.exp(scores[mask] - scores[mask].max())
    out[mask] = exponentials / exponentials.sum()
  return out


def score(h, params, kind):
  """Ilse et al. 2018: one position's score from its features h [C]."""
  h = np.asarray(h, np.float64)
  w = np.asarray(params['score']['kernel'], np.float64)
  if kind != 'linear':
    content = params['content']
    hidden = np.tanh(h @ np.asarray(content['kernel'], np.float64) + np.asarray(content['bias']))
    if kind == 'gated':
      gate = params['gate']
      logit = h @ np.asarray(gate['kernel'], np.float64) + np.asarray(gate['bias'])
      hidden = hidden / (1 + np.exp(-logit))
    h = hidden
  return h @ w


def score_map(x, params, kind):
  """[H, W, C] -> [M, H, W]."""
  height, width, _ = x.shape
  rows = [[score(x[i, j], params, kind) for j in range(width)] for i in range(height)]
  return np.moveaxis(np.asarray(rows), -1, 0)


def pooled(x, weights):
  """sum_ij a_ij h_ij for one image: [H, W, C], [M, H, W] -> [M, C]."""
  out = np.zeros((weights.shape[0], x.shape[-1]))
  for m in range(weights.shape[0]):
    for i in range(x.shape[0]):
      for j in range(x.shape[1]):
        out[m] += weights[m, i, j] * np.asarray(x[i, j], np.float64)
  return out


def dense(x, params):
  """x W + b in float64."""
  out = np.asarray(x, np.float64) @ np.asarray(params['kernel'], np.float64)
  return out + np.asarray(params['bias'], np.float64) if 'bias' in params else out


def conv3x3(x, params):
  """3x3 cross-correlation with zero padding of one image [H, W, C], by loops over positions."""
  kernel = np.asarray(params['kernel'], np.float64)
  height, width, _ = x.shape
  padded = np.zeros((height + 2, width + 2, x.shape[-1]))
  padded[1:-1, 1:-1] = x
  out = np.zeros((height, width, kernel.shape[-1]))
  for i in range(height):
    for j in range(width):
      for a in range(3):
        for b in range(3):
          out[i, j] += padded[i + a, j + b] @ kernel[a, b]
  return out + np.asarray(params['bias'], np.float64)


def max_pool2(x):
  """2x2 max pooling of one image, the odd row and column dropped."""
  height, width = x.shape[0] // 2, x.shape[1] // 2
  out = np.zeros((height, width, x.shape[-1]))
  for i in range(height):
    for j in range(width):
      out[i, j] = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(0, 1))
  return out
