"""PSPNet, its weights and its inference: torch and safetensors, nothing of the rest of Sceneparse."""

from models.inference.masks import Prediction
from models.inference.predictor import Predictor
from models.inference.sliding import SlidingPredictor
from models.pspnet import Architecture, PSPNet
from models.weights.checkpoint import Metadata, load, model_id, save

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
