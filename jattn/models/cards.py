"""What a named model costs, where it shows what it looked at, and where it comes from."""

import dataclasses

import jax
import jax.numpy as jnp

from jattn.cost import multiply_accumulates, peak_bytes
from jattn.models.classifier import Classifier
from jattn.types import in_order


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is known of a name without building it.

  Attributes:
    image_size: side of the images it was designed for, in pixels.
    num_classes: classes it was designed for.
    source: paper, year, arXiv number, and whose version it is.
  """

  image_size: int
  num_classes: int
  source: str


@dataclasses.dataclass(frozen=True)
class ModelCard:
  """A model at one size of images.

  Attributes:
    name: of the model.
    image_size: side of the images, in pixels.
    num_classes: L.
    parameters: how many numbers are learned (running statistics are not counted).
    multiply_accumulates: of one image's forward pass without reading maps, as
      ``jattn.cost.multiply_accumulates`` counts.
    peak_bytes: memory of one image's forward pass in float32 on the default device, as its compiler
      plans it: parameters, image, results and intermediate arrays; None where it was not asked for.
    maps: (path, kind, shape of the weights) of every map as the layers stand, for one image.
    source: where the architecture comes from.
    naming: 'timm' where weights go in and out under timm's names, otherwise 'jattn'.
  """

  name: str
  image_size: int
  num_classes: int
  parameters: int
  multiply_accumulates: int
  peak_bytes: int | None
  maps: tuple[tuple[str, str, tuple[int, ...]], ...]
  source: str
  naming: str

  def __str__(self) -> str:
    lines = [
      f'{self.name}, {self.num_classes} classes, {self.image_size}x{self.image_size}',
      f'  parameters            {self.parameters:,}',
      f'  multiply-accumulates  {self.multiply_accumulates / 1e9:.3f} G',
    ]
    if self.peak_bytes is not None:
      lines.append(f'  peak memory           {self.peak_bytes / 2**20:.1f} MiB for one image')
    lines += [
      f'  weights under         {self.naming} names',
      f'  source                {self.source}',
    ]
    lines += [f'  map  {path}  {kind}  {list(shape)}' for path, kind, shape in self.maps]
    return '\n'.join(lines if self.maps else [*lines, '  no map'])


def make_card(
  name: str, model: Classifier, facts: Facts, *, image_size: int, memory: bool
) -> ModelCard:
  """The card of ``model`` for images of ``image_size``."""
  images = jax.ShapeDtypeStruct((1, image_size, image_size, model.channels), jnp.float32)
  prediction, variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), images
  )

  def logits(variables, images):
    return model.apply(variables, images, train=False).logits

  return ModelCard(
    name=name,
    image_size=image_size,
    num_classes=prediction.logits.shape[-1],
    parameters=sum(leaf.size for leaf in jax.tree.leaves(variables['params'])),
    multiply_accumulates=multiply_accumulates(logits, variables, images),
    peak_bytes=peak_bytes(logits, variables, images) if memory else None,
    maps=tuple((path, m.kind, m.weights.shape) for path, m in in_order(prediction.maps).items()),
    source=facts.source,
    naming='timm' if hasattr(model.backbone, 'timm_names') else 'jattn',
  )
