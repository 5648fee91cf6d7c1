"""RASA: removes from the patch features of any ViT what linearly predicts where a patch lies (paper Sec. 2.3)."""

from franca.models import RASAHead
from rasa.errors import RasaError
from rasa.fit import RASAFit, fit_rasa
from rasa.fold import fold, rasa_matrix

__all__ = ["RASAFit", "RASAHead", "RasaError", "fit_rasa", "fold", "rasa_matrix"]
