"""Does the tutorial's classifier, corrected, reach the same accuracy in PyTorch as in jattn?

The tutorial this project grew from printed its classifier as a PyTorch listing that does not run:
its key is permuted into a shape the batched product cannot take, and its value is never transposed.
Here is the module its mathematics describes, trained by the recipe of jattn's `cifar10` preset on
the same splits. It shares the decoded images and their statistics with jattn and nothing else:
model, initialisation (PyTorch's default), augmentation, optimizer and loop are torch's, so that
agreement says something about both. jattn's classifier starts so with `--mimetic 0`; by itself it
starts query and key as each other. It is the one experiment with a training loop of its own.

    pip install 'jattn[torch]'
    python -m experiments.torch_twin --seed 0 --data-dir DIR --out twin.jsonl --checkpoint twin.npz

Cost: 3,515 steps of 128 images, 10 to 25 minutes on two idle CPU cores, 2 GB of memory. The command
may be killed and given again: it resumes from the last whole epoch of `--checkpoint`, bit for bit,
and adds no second line once `--out` has the run's `id`.

Recipe: JPEG CIFAR-10 (lossy: its accuracies are not those of the original CIFAR-10), 45,000 images
to train on; channels standardised by the training mean and standard deviation; flip with
probability 1/2, reflect-pad 4 and crop; dropout 0.5; AdamW (0.9, 0.999, 1e-8) with decoupled decay
0.05 on weights of rank 2 and more; gradient norm clipped at 1; linear warm-up from 0 to 1e-3 over a
tenth of the steps, then cosine to 0; float32. Nothing is chosen: the last weights are scored on the
choose and test splits, every image once.

Prints the loss as it goes, then one JSON line: accuracy on both splits, test negative
log-likelihood (nats), parameters, steps, seconds and images per second of training (neither loading
nor scoring), versions. `--out` appends that line to a file.
"""

import argparse
import json
import math
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

try:
  import torch
except ImportError:
  raise SystemExit("torch_twin needs PyTorch: pip install 'jattn[torch]'") from None
from torch import nn
from torch.nn import functional as F

PEAK = 1e-3
DECAY = 0.05
CLIP = 1.0
WARMUP = 0.1
PAD = 4
SCORE_BATCH = 500

# First word of every seed, so that orders and steps never draw from the same stream.
ORDER, STEP = 0, 1


class SelfAttention(nn.Module):
  """softmax(Q K^T / sqrt(d_k)) V over the positions; 1x1 convolutions give Q, K and V.

  [B, C, H, W] -> features [B, d_v, H, W] and weights [B, N, N], whose rows (one for each query)
  sum to one over the keys. One head, no output projection, no residual.
  """

  def __init__(self, channels, key_dim, value_dim):
    super().__init__()
    self.query = nn.Conv2d(channels, key_dim, 1)
    self.key = nn.Conv2d(channels, key_dim, 1)
    self.value = nn.Conv2d(channels, value_dim, 1)

  def forward(self, x):
    query, key, value = (
      conv(x).flatten(2).transpose(1, 2) for conv in (self.query, self.key, self.value)
    )
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    weights = scores.softmax(dim=-1)
    features = (weights @ value).transpose(1, 2).unflatten(2, x.shape[2:])
    return features, weights


class TwinClassifier(nn.Module):
  """The tutorial's classifier: convolutions, self-attention, two linear layers.

  Images [B, 3, size, size] -> logits [B, L] and attention weights [B, N, N] (None without
  attention). Each stage is a 3x3 convolution, ReLU and a 2x2 max pool. Features are flattened in
  NCHW order.
  """

  def __init__(
    self,
    num_classes=10,
    *,
    size=32,
    widths=(64, 128, 256),
    key_dim=32,
    value_dim=256,
    hidden=512,
    dropout=0.5,
    attention=True,
  ):
    super().__init__()
    self.stages = nn.ModuleList(
      nn.Conv2d(c_in, c_out, 3, padding=1)
      for c_in, c_out in zip((3, *widths[:-1]), widths, strict=True)
    )
    self.attention = SelfAttention(widths[-1], key_dim, value_dim) if attention else None
    positions = (size // 2 ** len(widths)) ** 2
    self.hidden = nn.Linear(positions * (value_dim if attention else widths[-1]), hidden)
    self.dropout = nn.Dropout(dropout)
    self.logits = nn.Linear(hidden, num_classes)

  def forward(self, images):
    x, weights = images, None
    for conv in self.stages:
      x = F.max_pool2d(F.relu(conv(x)), 2)
    if self.attention is not None:
      x, weights = self.attention(x)
    x = self.dropout(F.relu(self.hidden(x.flatten(1))))
    return self.logits(x), weights


def learning_rate(step, steps):
  """Rate of update `step` of 0..steps-1: linear from 0 to PEAK, then cosine to 0 at `steps`."""
  warmup = int(WARMUP * steps)
  if step < warmup:
    return PEAK * step / warmup
  return PEAK * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def batch_indices(step, batch_size, size, seed):
  """Rows of the training set in batch `step`, from a fresh permutation each epoch, end to end."""
  first, last = step * batch_size, (step + 1) * batch_size
  epochs = range(first // size, (last - 1) // size + 1)
  order = np.concatenate(
    [np.random.default_rng((ORDER, seed, e)).permutation(size) for e in epochs]
  )
  return torch.from_numpy(order[first - epochs[0] * size : last - epochs[0] * size])


def augment(images, rows):
  """Picks `rows` of uint8 images [n, H, W, C], each flipped (p = 1/2), reflect-padded and cropped.

  Padding and crop are one gather: output row i reads source row reflect(i + shift), with a shift in
  -PAD..PAD for each image and axis.
  """
  _, height, width, _ = images.shape

  def source(length):
    index = (torch.arange(length) + torch.randint(-PAD, PAD + 1, (len(rows), 1))).abs()
    return length - 1 - (length - 1 - index).abs()

  y, x = source(height), source(width)
  flip = torch.rand(len(rows), 1) < 0.5
  x = torch.where(flip, width - 1 - x, x)
  return images[rows[:, None, None], y[:, :, None], x[:, None, :]]


def standardise(images, mean, std):
  """uint8 [B, H, W, C] -> float32 [B, C, H, W] in channels-last memory; mean, std are of 0..1."""
  return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)


def make_optimizer(model):
  decayed = [p for p in model.parameters() if p.ndim >= 2]
  rest = [p for p in model.parameters() if p.ndim < 2]
  groups = [{'params': decayed, 'weight_decay': DECAY}, {'params': rest, 'weight_decay': 0.0}]
  return torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-8, fused=True)


def update(model, optimizer, images, labels, rate):
  """One step of AdamW on the mean cross-entropy. Returns the loss before the step."""
  for group in optimizer.param_groups:
    group['lr'] = rate
  optimizer.zero_grad()
  loss = F.cross_entropy(model(images)[0], labels)
  loss.backward()
  nn.utils.clip_grad_norm_(model.parameters(), CLIP, error_if_nonfinite=True)
  optimizer.step()
  return loss.item()


@torch.no_grad()
def score(model, images, labels, mean, std):
  """Accuracy and mean negative log-likelihood (nats) over all the images, without dropout."""
  model.eval()
  correct, nll = 0, 0.0
  for rows in torch.arange(len(images)).split(SCORE_BATCH):
    logits = model(standardise(images[rows], mean, std))[0]
    correct += (logits.argmax(1) == labels[rows]).sum().item()
    nll += F.cross_entropy(logits.double(), labels[rows], reduction='sum').item()
  model.train()
  return correct / len(images), nll / len(images)


def save(path, run, model, optimizer, step, seconds):
  """Writes weights, moments and progress as plain arrays; a kill leaves the old file or the new."""
  arrays = {'run': np.array(run), 'step': np.array(step), 'seconds': np.array(seconds)}
  for name, p in model.named_parameters():
    arrays[f'weight/{name}'] = p.detach().numpy()
    for slot, tensor in optimizer.state[p].items():
      arrays[f'{slot}/{name}'] = tensor.numpy()
  part = path.with_name(path.name + '.part')
  with part.open('wb') as file:
    np.savez(file, **arrays)
  os.replace(part, path)


def restore(path, run, model, optimizer):
  """Reads what `save` wrote. Returns (step, seconds), or (0, 0.0) where there is no file yet."""
  if not path.exists():
    return 0, 0.0
  with np.load(path) as arrays:
    if str(arrays['run']) != run:
      raise SystemExit(f'--checkpoint {path} is of the run {arrays["run"]}, not {run}')
    for name, p in model.named_parameters():
      p.data.copy_(torch.from_numpy(arrays[f'weight/{name}']))
      # empty_like keeps the memory format of p, which the fused update expects of its moments.
      optimizer.state[p] = {
        'step': torch.from_numpy(arrays[f'step/{name}']),
        'exp_avg': torch.empty_like(p).copy_(torch.from_numpy(arrays[f'exp_avg/{name}'])),
        'exp_avg_sq': torch.empty_like(p).copy_(torch.from_numpy(arrays[f'exp_avg_sq/{name}'])),
      }
    return int(arrays['step']), float(arrays['seconds'])


def train(model, data, *, run, steps, batch_size, seed, checkpoint):
  """Trains in place, from `checkpoint` where there is one. Returns the seconds spent training."""
  images, labels, mean, std = data
  size = len(images)
  optimizer = make_optimizer(model)
  start, before = restore(checkpoint, run, model, optimizer) if checkpoint else (0, 0.0)
  if start:
    print(f'resumed at step {start} of {steps}', flush=True)
  began = time.perf_counter()
  spent, losses = before, []
  for step in range(start, steps):
    # All of a step's randomness is a function of (seed, step): a resumed run needs no other state.
    torch.manual_seed(int(np.random.SeedSequence((STEP, seed, step)).generate_state(1)[0]))
    rows = batch_indices(step, batch_size, size, seed)
    batch = standardise(augment(images, rows), mean, std)
    losses.append(update(model, optimizer, batch, labels[rows], learning_rate(step, steps)))
    spent = before + time.perf_counter() - began
    done = step + 1
    if done % 100 == 0 or done == steps:
      pace = (spent - before) / (done - start)
      left = pace * (steps - done) / 60
      print(
        f'step {done}/{steps}  loss {np.mean(losses):.4f}  {1e3 * pace:.0f} ms/step'
        f'  {left:.0f} min left',
        flush=True,
      )
      losses = []
    ended_epoch = done * batch_size // size > step * batch_size // size
    if checkpoint and (ended_epoch or done == steps):
      save(checkpoint, run, model, optimizer, done, spent)
  return spent


def already_done(out, run):
  if out is None or not out.exists():
    return False
  return any(json.loads(line)['id'] == run for line in out.read_text().splitlines() if line)


def parse_arguments():
  def natural(text):
    value = int(text)
    if value < 0:
      raise argparse.ArgumentTypeError(f'{text} is negative')
    return value

  def count(text):
    if natural(text) == 0:
      raise argparse.ArgumentTypeError('must be 1 or more')
    return int(text)

  parser = argparse.ArgumentParser(
    prog='python -m experiments.torch_twin', description=__doc__.splitlines()[0]
  )
  parser.add_argument('--seed', type=natural, default=0, help='of weights, order and noise')
  parser.add_argument('--epochs', type=count, default=10, help='passes over the training images')
  parser.add_argument('--steps', type=count, help='updates, in place of --epochs')
  parser.add_argument('--batch-size', type=count, default=128, help='images in an update')
  parser.add_argument('--data-dir', help='of prepared TFDS sets (default: $TFDS_DATA_DIR)')
  parser.add_argument('--out', type=Path, help='file that the JSON line is appended to')
  parser.add_argument('--checkpoint', type=Path, help='.npz written every epoch and resumed from')
  parser.add_argument('--threads', type=count, help="of torch (default: torch's own choice)")
  parser.add_argument('--no-attention', action='store_true', help='train the arm without attention')
  return parser.parse_args()


def main():
  flags = parse_arguments()
  if flags.threads:
    torch.set_num_threads(flags.threads)
  import jattn.data  # after the flags are parsed, so that --help does not wait for jax

  try:
    data = jattn.data.load('tfds:cifar10', data_dir=flags.data_dir)
  except jattn.data.DataError as error:
    raise SystemExit(str(error)) from None
  mean, std = (torch.tensor(np.asarray(m), dtype=torch.float32) for m in (data.mean, data.std))
  splits = {
    name: tuple(torch.from_numpy(np.array(a)) for a in data.arrays(name))
    for name in ('train', 'choose', 'test')
  }
  splits = {name: (images, labels.long()) for name, (images, labels) in splits.items()}
  size = len(splits['train'][0])
  steps = flags.steps or flags.epochs * size // flags.batch_size
  arm = 'no_attention' if flags.no_attention else 'attention'
  run = f'torch_twin-{arm}-seed{flags.seed}-{steps}x{flags.batch_size}'
  if already_done(flags.out, run):
    print(f'{flags.out} already has {run}')
    return

  torch.manual_seed(flags.seed)
  model = TwinClassifier(attention=not flags.no_attention).to(memory_format=torch.channels_last)
  seconds = train(
    model,
    (*splits['train'], mean, std),
    run=run,
    steps=steps,
    batch_size=flags.batch_size,
    seed=flags.seed,
    checkpoint=flags.checkpoint,
  )
  choose_accuracy, _ = score(model, *splits['choose'], mean, std)
  test_accuracy, test_nll = score(model, *splits['test'], mean, std)
  result = {
    'id': run,
    'test_accuracy': test_accuracy,
    'choose_accuracy': choose_accuracy,
    'test_nll': test_nll,
    'parameters': sum(p.numel() for p in model.parameters()),
    'steps': steps,
    'epochs': round(steps * flags.batch_size / size, 2),
    'batch_size': flags.batch_size,
    'seed': flags.seed,
    'attention': not flags.no_attention,
    'seconds': round(seconds, 1),
    'images_per_second': round(steps * flags.batch_size / seconds, 1),
    'device': f'cpu, {torch.get_num_threads()} threads',
    'precision': 'float32',
    'data': 'JPEG CIFAR-10',
    'data_fingerprint': data.fingerprint,
    'versions': {'torch': torch.__version__, 'python': platform.python_version()},
    'date': datetime.now(UTC).date().isoformat(),
  }
  line = json.dumps(result)
  print(line)
  if flags.out is not None:
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    with flags.out.open('a') as file:
      file.write(line + '\n')


if __name__ == '__main__':
  main()
