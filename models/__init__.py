"""PSPNet, its weights and its inference: torch and safetensors, nothing of the rest of Sceneparse."""

from models.checkpoint import Metadata, load, model_id, save
from models.labelling import Prediction
from models.predictor import Predictor
from models.protocol import SlidingPredictor
from models.pspnet import Architecture, PSPNet

__all__ = [
    "Architecture",
    "Metadata",
    "PSPNet",
    "Prediction",
    "Predictor",
    "SlidingPredictor",
    "load",
    "model_id",
    "save",
]
