"""PSPNet, its weights and its inference: torch and safetensors, nothing of the rest of Sceneparse."""

from models.checkpoint import Metadata, load, model_id, save
from models.predictor import Prediction, Predictor
from models.pspnet import Architecture, PSPNet

__all__ = ["Architecture", "Metadata", "PSPNet", "Prediction", "Predictor", "load", "model_id", "save"]
