"""Maps over their images, many on one sheet: for files and for TensorBoard."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jattn.explain import overlay
from jattn.explain.report.outlines import traced

_SIDE, _GAP, _LINE, _ACROSS = 128, 6, 14, 8


def sheet(
  images: np.ndarray,
  maps: np.ndarray,
  texts: Sequence[str],
  *,
  masks: np.ndarray | None = None,
) -> np.ndarray:
  """Every image in grey with its map over it in the report's colours, and a line of text.

  Args:
    images: [N, H, W, 3] uint8.
    maps: [N, H, W], raw.
    texts: N lines.
    masks: [N, H, W] bool, whose border is drawn.

  Returns:
    [height, width, 3] uint8.
  """
  height, width = images.shape[1:3]
  scale = max(1, round(_SIDE / max(height, width)))
  across = min(_ACROSS, len(images))
  step = (width * scale + _GAP, height * scale + _LINE + _GAP)
  size = (across * step[0] + _GAP, -(-len(images) // across) * step[1] + _GAP)
  canvas = Image.new('RGB', size, 'white')
  draw, font = ImageDraw.Draw(canvas), ImageFont.load_default()
  for index, over in enumerate(overlay(images, maps)):
    large = over.repeat(scale, axis=0).repeat(scale, axis=1)
    if masks is not None:
      large = traced(large, masks[index])
    left, top = index % across * step[0] + _GAP, index // across * step[1] + _GAP
    canvas.paste(Image.fromarray(large), (left, top))
    # The font of Pillow itself knows no other letters.
    text = texts[index].encode('latin-1', 'replace').decode('latin-1')
    while len(text) > 1 and draw.textlength(text, font=font) > step[0] - _GAP:
      text = text[:-1]
    draw.text((left, top + height * scale + 1), text, fill='black', font=font)
  return np.asarray(canvas)
