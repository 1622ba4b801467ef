"""PSPNet with its weights and inference. Depends on torch and safetensors, not on the rest of Sceneparse."""

from models.inference.prediction import Prediction
from models.inference.predictor import Calibration, Predictor
from models.inference.sliding import Protocol, SlidingPredictor
from models.pspnet import Architecture, PSPNet
from models.weights.checkpoint import Metadata, load, model_id, save

__all__ = [
    "Architecture",
    "Calibration",
    "Metadata",
    "PSPNet",
    "Prediction",
    "Predictor",
    "Protocol",
    "SlidingPredictor",
    "load",
    "model_id",
    "save",
]
