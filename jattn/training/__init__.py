"""State, step, loop, checkpoints, metrics, mesh; knows neither models nor data."""

from jattn.training.loop import Fitted, evaluate, fit
from jattn.training.mesh import make_mesh, place_batch, replicated, state_sharding
from jattn.training.metrics import Metrics, measure
from jattn.training.optimizer import make_optimizer, make_schedule
from jattn.training.preemption import Preemption
from jattn.training.state import TrainState, create_state
from jattn.training.step import StepMetrics, make_eval_step, make_train_step, make_update

__all__ = [
  'Fitted',
  'Metrics',
  'Preemption',
  'StepMetrics',
  'TrainState',
  'create_state',
  'evaluate',
  'fit',
  'make_eval_step',
  'make_mesh',
  'make_optimizer',
  'make_schedule',
  'make_train_step',
  'make_update',
  'measure',
  'place_batch',
  'replicated',
  'state_sharding',
]
