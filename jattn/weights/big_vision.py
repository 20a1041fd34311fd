"""Vision transformers of big_vision and AugReg: which of their namings an .npz file has."""

from collections.abc import Collection, Set

import flax.linen as nn

from jattn.layouts import Layouts, prefixed
from jattn.weights.errors import WeightsError
from jattn.weights.naming import Naming, covers, naming_by, tensor_names

# See jattn.backbones.ViT: AugReg's, big_vision's, and the latter with all blocks in one array.
STYLES = ('big_vision', 'big_vision_loop', 'big_vision_scan')
# What precedes every name in a checkpoint of a whole training, or of a model of two towers.
PREFIXES = ('', 'params/', 'opt/target/', 'params/img/')


def choose(model: nn.Module, paths: Collection[str], names: Set[str]) -> tuple[Naming, str]:
  """The naming, and its prefix, under which most leaves of ``model`` are in the file.

  Args:
    model: has ``names(style)``, as a ``Classifier``.
    paths: of its leaves, 'params/...'.
    names: of the arrays in the file.

  Raises:
    WeightsError: big_vision has no such model.
  """
  found: list[tuple[int, Naming, str]] = []
  for style in STYLES:
    layouts: Layouts = model.names(style) if hasattr(model, 'names') else {}
    for prefix in PREFIXES:
      naming = naming_by(prefixed(layouts, name=prefix), style)
      if covers(naming, paths):
        found.append((len(tensor_names(naming, paths) & names), naming, prefix))
  if not found:
    backbone = type(getattr(model, 'backbone', model)).__name__
    raise WeightsError(f'big_vision has no such {backbone}: its .npz files hold plain ViTs')
  _, naming, prefix = max(found, key=lambda item: item[0])
  return naming, prefix
