"""Which pixels count for a prediction, by many methods, and how far each map can be trusted.

``explain`` gives a map for each image by any of ``list_methods()``; the scores of ``LOCALISATION``
hold maps against masks, ``deletion_and_insertion`` and ``road`` against the model itself, and
``parameter_randomisation``, ``class_sensitivity`` and ``attention_faithfulness`` ask whether a map
depends on the network, on the class and on what the network uses. Every score is a ``Score``: a
value for each image, its chance level, and the direction. ``write_report`` makes one page of all.
Images and maps may lie on a mesh, with explicit axes too; what is returned for each lies there.
"""

from jattn.explain.faithfulness import attention_faithfulness, covering_drops, faithfulness
from jattn.explain.heads import attention_by_head
from jattn.explain.imputation import impute
from jattn.explain.localisation import (
  LOCALISATION,
  auroc,
  average_precision,
  best_iou,
  energy,
  energy_lift,
  mean_iou,
  pointing_game,
  rank_accuracy,
)
from jattn.explain.methods import CONTROLS, METHODS, degenerate, explain, list_methods
from jattn.explain.ranking import spearman
from jattn.explain.removal import Curves, deletion_and_insertion, removal_ranks, road
from jattn.explain.report import Summary, overlay, summarise, write_report
from jattn.explain.resizing import upsample
from jattn.explain.sanity import class_sensitivity, parameter_randomisation
from jattn.explain.score import Interval, Score, bootstrap_interval

__all__ = [
  'CONTROLS',
  'LOCALISATION',
  'METHODS',
  'Curves',
  'Interval',
  'Score',
  'Summary',
  'attention_by_head',
  'attention_faithfulness',
  'auroc',
  'average_precision',
  'best_iou',
  'bootstrap_interval',
  'class_sensitivity',
  'covering_drops',
  'degenerate',
  'deletion_and_insertion',
  'energy',
  'energy_lift',
  'explain',
  'faithfulness',
  'impute',
  'list_methods',
  'mean_iou',
  'overlay',
  'parameter_randomisation',
  'pointing_game',
  'rank_accuracy',
  'removal_ranks',
  'road',
  'spearman',
  'summarise',
  'upsample',
  'write_report',
]
