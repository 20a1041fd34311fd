"""Scenes whose discriminative pixels are known, composed of digits when they are looked at.

=========  ======================================================  ===============================
kind       what is on the canvas                                   settings
=========  ======================================================  ===============================
cluttered  one digit among 8 x 8 pieces of digits                  size=60, clutter=4
megapixel  five digits, three of one class, among line noise       size=1500, noise, order=under
paired     two digits of different classes, the label's in a ring  size=100
shortcut   one digit, and a cue that tells it in train only        size=60, agreement=100
=========  ======================================================  ===============================

All kinds also take `train`, `choose` and `test` (numbers of scenes), `seed` and `sprites`.

  dataset = jattn.data.load('scenes:cluttered?size=100&clutter=8&train=50000')
  truth = dataset.truth('test', range(100))     # masks [B, H, W], boxes [B, K, 4], chance levels
  scenes = dataset.scenes('test')               # a pytree: draw and render inside jit
  crops = scenes.render(scenes.draw(jnp.arange(8)), corner=(10, 20), size=32)
"""

from jattn.data.scenes.canvas import INK, Layer, Scene
from jattn.data.scenes.dataset import SceneDataset
from jattn.data.scenes.opening import Spec, open_scenes, parse
from jattn.data.scenes.recipes import RECIPES, Cluttered, Megapixel, Paired, Shortcut
from jattn.data.scenes.scenes import Scenes, Truth

__all__ = [
  'INK',
  'RECIPES',
  'Cluttered',
  'Layer',
  'Megapixel',
  'Paired',
  'Scene',
  'SceneDataset',
  'Scenes',
  'Shortcut',
  'Spec',
  'Truth',
  'open_scenes',
  'parse',
]
