"""Training of classifiers of texts, with any of the objectives that look at pooled features."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = ["encode_classes", "load_classifier_for", "predict_classes", "train_classifier"]

if TYPE_CHECKING:
    from tunesmith.trainers.classify.encoding import encode_classes
    from tunesmith.trainers.classify.models import load_classifier_for, predict_classes
    from tunesmith.trainers.classify.training import train_classifier
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "encode_classes": "encoding",
            "load_classifier_for": "models",
            "predict_classes": "models",
            "train_classifier": "training",
        },
    )
