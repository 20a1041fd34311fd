"""The name of a dataset of scenes, KIND?SETTING=VALUE&..., becomes its scenes."""

import dataclasses
import hashlib
import json
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jattn.data.dataset import Dataset
from jattn.data.errors import DataError
from jattn.data.scenes.dataset import SceneExamples
from jattn.data.scenes.draws import make_key
from jattn.data.scenes.recipes import RECIPES, Recipe
from jattn.data.scenes.scenes import Scenes
from jattn.data.scenes.sprites import Sprites
from jattn.data.source import Source
from jattn.data.splitting import SPLITS
from jattn.names import look_up

# Raised whenever the same name would give other bytes: it is part of the fingerprint.
SCENES_VERSION = 1
_SALT = 0x5CE7E5


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a name says.

  Attributes:
    kind: a key of `RECIPES`.
    recipe: the settings of that kind.
    counts: scenes of each split; None where the user did not say.
    seed: in 0..2^31 - 1: another seed, other scenes out of the same digits.
    sprites: the name of the dataset that the digits come from.
  """

  kind: str
  recipe: Recipe
  counts: Mapping[str, int | None]
  seed: int
  sprites: str


def parse(name: str) -> Spec:
  """Reads 'cluttered?size=60&clutter=4': a kind and, if any, its settings.

  Settings of every kind: `train`, `choose` and `test` (numbers of scenes), `seed`, and `sprites`
  (any dataset of grey digits that `jattn.data.load` knows: 'digits', 'tfds:mnist'). The others are
  the fields of the kind's recipe.

  >>> parse('cluttered?size=100&sprites=tfds:mnist').recipe
  Cluttered(size=100, clutter=4)

  Raises:
    DataError: an unknown kind or setting (names the nearest), a value that is no whole number or
      out of range.
  """
  kind, question, query = name.partition('?')
  try:
    make = look_up(kind, RECIPES, noun='kind of scene')
    if question and not query:
      raise ValueError("after '?' come settings: SETTING=VALUE&SETTING=VALUE")
    own = {field.name: field.type for field in dataclasses.fields(make)}
    types = {**own, **dict.fromkeys((*SPLITS, 'seed'), int), 'sprites': str}
    values: dict[str, Any] = {}
    for setting, text in urllib.parse.parse_qsl(query, keep_blank_values=True):
      kept = look_up(setting, types, noun=f'setting of {kind}')
      if setting in values:
        raise ValueError(f'{setting} is set twice')
      values[setting] = text if kept is str else _whole_number(setting, text)
    for setting, least in (('train', 1), ('choose', 0), ('test', 1), ('seed', 0)):
      if not least <= values.get(setting, least) < 2**31:
        raise ValueError(f'{setting}={values[setting]} must be in {least}..2^31 - 1')
    recipe = make(**{setting: values[setting] for setting in own if setting in values})
  except ValueError as error:
    raise DataError(f'scenes:{name}: {error}') from None
  return Spec(
    kind=kind,
    recipe=recipe,
    counts={split: values.get(split) for split in SPLITS},
    seed=values.get('seed', 0),
    sprites=values.get('sprites', 'digits'),
  )


def open_scenes(
  name: str,
  *,
  sizes: tuple[int | None, int | None],
  crop_ratio: float,
  workers: int,
  load: Callable[[str], Dataset],
) -> Source:
  """Opens what `parse` reads.

  The digits of a split are those of the same split of the sprites' dataset, so no digit is in two
  splits, and neither is a noise pattern.

  Args:
    name: as in `parse`.
    sizes: what the user asked for; nothing but None or the size of the canvas will do.
    crop_ratio: must be 1: a scene is never resized, or its truth would be elsewhere.
    workers: must be 0: scenes are rendered by JAX, in the process that has the device.
    load: loads the sprites in memory at 28 x 28.

  Raises:
    DataError: as `parse`; the sprites cannot be loaded, have colours, or lack a class in a split.
    ValueError: a crop_ratio or workers that will not do.
  """
  spec = parse(name)
  where = f'scenes:{name}'
  for size in sizes:
    if size not in (None, spec.recipe.size):
      raise DataError(f'{where}: say the size in the name: scenes:{spec.kind}?size={size}')
  if crop_ratio != 1:
    raise ValueError(f'{crop_ratio=} must be 1 for scenes: they are not resized')
  if workers:
    raise ValueError(f'{workers=} must be 0 for scenes: they are rendered, not decoded')
  try:
    sprites = load(spec.sprites)
  except DataError as error:
    raise DataError(f'{where}: sprites: {error}') from None
  examples, digests = {}, {}
  for split in SPLITS:
    count = spec.counts[split]
    if count is None:
      count = spec.recipe.counts[split] if sprites.num_examples(split) else 0
    scenes = _scenes(spec, sprites, split, where) if count else None
    examples[split] = SceneExamples(scenes, count)
    digests[split] = {
      table: hashlib.sha256(np.asarray(pictures).tobytes()).hexdigest()
      for table, pictures in (scenes.patterns if scenes else {}).items()
    }
  facts = {'version': SCENES_VERSION, 'sprites': sprites.fingerprint, 'patterns': digests}
  settings = {
    **dataclasses.asdict(spec.recipe),
    **{split: len(examples[split]) for split in SPLITS},
    'seed': spec.seed,
    'sprites': sprites.label,
  }
  return Source(
    label=f'scenes:{spec.kind}?' + '&'.join(f'{key}={value}' for key, value in settings.items()),
    class_names=sprites.class_names,
    examples=examples,
    rows={split: (split, None) for split in SPLITS},
    natural_size=spec.recipe.size,
    digest=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
    encoded=False,
  )


def _scenes(spec: Spec, sprites: Dataset, split: str, where: str) -> Scenes:
  images, labels = sprites.arrays(split)
  if (images != images[..., :1]).any():
    raise DataError(f'{where}: sprites {spec.sprites} must be grey')
  count = np.bincount(labels, minlength=sprites.num_classes)
  if not count.all():
    absent = sprites.class_names[int(count.argmin())]
    raise DataError(f'{where}: split {split!r} of the sprites {spec.sprites} has no {absent!r}')
  by_class = np.argsort(labels, kind='stable')
  try:
    patterns = spec.recipe.patterns(
      num_classes=sprites.num_classes, entropy=(_SALT, spec.seed, SPLITS.index(split))
    )
  except ValueError as error:
    raise DataError(f'{where}: {error}') from None
  return Scenes(
    key=make_key(spec.seed, SPLITS.index(split)),
    test=jnp.asarray(split == 'test'),
    sprites=Sprites(
      images=jnp.asarray(images[by_class, ..., 0]),
      labels=jnp.asarray(labels[by_class]),
      starts=jnp.asarray(np.concatenate([[0], np.cumsum(count)]), jnp.int32),
    ),
    patterns={table: jnp.asarray(pictures) for table, pictures in patterns.items()},
    recipe=spec.recipe,
  )


def _whole_number(setting: str, text: str) -> int:
  # int() would also take '1_000', ' 7' and digits of other scripts.
  if not (text.isascii() and text.isdigit()):
    raise ValueError(f'{setting}={text!r} must be a whole number')
  return int(text)
