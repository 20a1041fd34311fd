"""A run's own maps while it trains, and the report at its end: what ``--explain N`` adds."""

from typing import Any

import jax
import numpy as np

from experiments import explanation_files
from experiments.events import SummaryWriter
from experiments.explanations import Explainer, take
from experiments.map_sheets import sheet
from experiments.rundir import RunDirectory
from experiments.setup import Setup
from jattn import training

# One that is read off and one by gradients; cheap beside an evaluation.
METHODS = ('attention', 'grad_cam')


class MapLog:
  """Pictures of N images at every evaluation, and their report at the end.

  While training the images are of the choose split: nobody looks at the test split to decide. The
  state is only read.
  """

  def __init__(self, setup: Setup, dataset: Any):
    self.setup, self.dataset = setup, dataset
    self.explainer: Explainer | None = None
    self.served: list[str] = []

  def write(self, events: SummaryWriter, step: int, variables: Any) -> None:
    """Adds one picture for each method to TensorBoard, of the predicted class."""
    if not self.setup.config.explain:
      return
    variables = training.whole(variables)
    if jax.process_index() > 0:
      return
    if self.explainer is None:
      self.explainer = Explainer(
        self.setup, take(self.dataset, 'choose', self.setup.config.explain)
      )
    explainer = self.explainer
    variables = explainer.place(variables)
    if not self.served:
      self.served, _ = explainer.servable(METHODS, variables)
    sample, names = explainer.sample, self.setup.facts.class_names
    masks = None if sample.truth is None else np.asarray(sample.truth.masks)
    for method, maps in explainer.maps(self.served, variables).items():
      drawn = sheet(sample.images, maps, [names[a] for a in sample.labels], masks=masks)
      events.add_image(f'explain/{method}', drawn, step, dataformats='HWC')

  def report(self, directory: RunDirectory, step: int, variables: Any) -> None:
    """Writes explain/report.html of the first test images, as ``experiments.explain`` does."""
    if not self.setup.config.explain:
      return
    variables = training.whole(variables)
    if directory.follows:
      return
    sample = take(self.dataset, 'test', self.setup.config.explain)
    found = Explainer(self.setup, sample).explanation(variables)
    facts = explanation_files.facts(
      self.setup,
      path=directory.path,
      step=step,
      of=self.dataset.num_examples('test'),
      split='test',
      target='predicted',
      count=len(sample.images),
    )
    explanation_files.write(directory.path / 'explain', found, self.setup, facts=facts)
