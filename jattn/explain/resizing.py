"""How a map on a grid becomes a picture of the image's size."""

import jax


def upsample(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
  """[B, h, w] -> [B, *size]: bilinear between the centres of the cells.

  A cell stands at the centre of the area it covers; pixels between four centres are weighed by
  their distance, and those beyond the outermost centres take the nearest. A map of the image's size
  stays as it is. Values stay within the range of the map; nothing is normalised.

  >>> import jax.numpy as jnp
  >>> upsample(jnp.array([[[0.0, 1.0]]]), (1, 4)).tolist()
  [[[0.0, 0.25, 0.75, 1.0]]]
  """
  if maps.shape[1:] == tuple(size):
    return maps
  return jax.image.resize(maps, (len(maps), *size), 'bilinear')
