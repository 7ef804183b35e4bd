"""Training and evaluation with FastReID's trainer."""

from .trainer import CerberusTrainer as CerberusTrainer
from .trainer import evaluate as evaluate
from .trainer import read_config as read_config
from .trainer import setup as setup
from .trainer import start as start
from .trainer import write_results as write_results
