"""The layers again, in float64 NumPy: a convolution by loops over its window, and the norms."""

import math

import numpy as np


def convolve(x, kernel, *, stride=1, dilation=1, groups=1):
  """[B, H, W, I], [h, w, I / groups, O] -> [B, H', W', O], zeros ``dilation * (h // 2)`` around."""
  batch, height, width, inputs = x.shape
  rows, columns, each, outputs = kernel.shape
  above, left = dilation * (rows // 2), dilation * (columns // 2)
  padded = np.pad(x, ((0, 0), (above, above), (left, left), (0, 0)))
  out_height = (height + 2 * above - dilation * (rows - 1) - 1) // stride + 1
  out_width = (width + 2 * left - dilation * (columns - 1) - 1) // stride + 1
  out = np.zeros((batch, out_height, out_width, outputs))
  share = outputs // groups
  for i in range(out_height):
    for j in range(out_width):
      for a in range(rows):
        for b in range(columns):
          seen = padded[:, i * stride + a * dilation, j * stride + b * dilation]
          for g in range(groups):
            taken = slice(g * share, (g + 1) * share)
            product = seen[:, g * each : (g + 1) * each] @ kernel[a, b][:, taken]
            out[:, i, j, taken] += product
  assert groups * each == inputs
  return out


def batch_norm(x, p, name, train):
  """By the batch's statistics in training, by the running ones otherwise; epsilon 1e-5."""
  axes = tuple(range(x.ndim - 1))
  mean = x.mean(axes) if train else p[f'{name}/mean']
  var = ((x - mean) ** 2).mean(axes) if train else p[f'{name}/var']
  return (x - mean) / np.sqrt(var + 1e-5) * p[f'{name}/scale'] + p[f'{name}/bias']


def group_norm(x, p, name, *, groups=8):
  """By the statistics of each image and group of neighbouring channels; epsilon 1e-5."""
  split = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
  mean, var = (f(split, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
  y = ((split - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
  return y * p[f'{name}/scale'] + p[f'{name}/bias']


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def layer_norm(x, p, name, *, epsilon=1e-6):
  """By the statistics of each position over its channels."""
  mean, var = (f(x, axis=-1, keepdims=True) for f in (np.mean, np.var))
  return (x - mean) / np.sqrt(var + epsilon) * p[f'{name}/scale'] + p[f'{name}/bias']


def gelu(x):
  """The exact one, x times the normal distribution's function."""
  return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def softmax(x):
  """Over the last axis."""
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)
