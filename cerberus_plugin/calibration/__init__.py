"""Probabilities that mean something: how they are fitted on labelled images, measured, and put to use."""

from ..portable.verification import Verification as Verification
from ..portable.verification import same_person_probability as same_person_probability
from .bounds import CONFIDENCE as CONFIDENCE
from .bounds import chance_of_so_few as chance_of_so_few
from .curve import BINS as BINS
from .curve import Reliability as Reliability
from .curve import brier as brier
from .curve import draws as draws
from .curve import mean_by_images as mean_by_images
from .curve import reliability as reliability
from .record import Calibration as Calibration
from .temperature import BOUNDS as BOUNDS
from .temperature import fit_temperature as fit_temperature
from .temperature import negative_log_likelihood as negative_log_likelihood
from .temperature import right_answers as right_answers
from .verification import Pairs as Pairs
from .verification import collect_pairs as collect_pairs
from .verification import false_match_rate as false_match_rate
from .verification import fit_logistic as fit_logistic
from .verification import likelihood_ratio_cost as likelihood_ratio_cost
from .verification import pairs_needed as pairs_needed
from .verification import threshold_for as threshold_for
from .verification import true_match_rate as true_match_rate
from .withholding import answered as answered
from .withholding import choose_withholding as choose_withholding
from .withholding import identities_to_vouch as identities_to_vouch
