"""Maps as pictures: overlays on one scale, and a page of them that opens without a network."""

from jattn.explain.report.colours import LIMIT, colours_of, multiples, overlay
from jattn.explain.report.page import write_report
from jattn.explain.report.summary import Summary, summarise

__all__ = [
  'LIMIT',
  'Summary',
  'colours_of',
  'multiples',
  'overlay',
  'summarise',
  'write_report',
]
