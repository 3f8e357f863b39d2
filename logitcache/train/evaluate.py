"""How good is a network: on labelled images, and beside its teacher."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from logitcache.data import ImageSet, Renderer
from logitcache.data.images.views import View, make_views
from logitcache.data.images.views.preprocessing import Preprocessing

__all__ = ["Evaluation", "evaluate", "for_evaluation"]

_BATCH = 256
_BINS = 15


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured, in evaluation mode.

    Attributes:
        accuracy: Share of samples whose largest logit is the label's.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017).
        predictions: Class of the largest logit, [B] int64.
    """

    accuracy: float
    loss: float
    ece: float
    predictions: NDArray[np.int64]


def for_evaluation(training: Preprocessing, images: ImageSet) -> Preprocessing:
    """Return the preprocessing of whole images for a network that was trained with another."""
    size = training.image_size
    if images.native_size == (size, size) or (images.native_size and training.resize == "none"):
        return replace(training, resize="none")
    return replace(training, resize="center-crop")


def evaluate(
    module: nn.Module,
    renderer: Renderer,
    preprocessing: Preprocessing,
    labels: NDArray[np.int64],
    device: torch.device,
    *,
    view: View | None = None,
    samples: NDArray[np.int64] | None = None,
) -> Evaluation:
    """Run a network over images in evaluation mode; its mode is restored.

    Args:
        module: The network, on `device`.
        renderer: Of the images, for this preprocessing.
        preprocessing: What turns pixels into its input.
        labels: Of all samples, [N].
        device: Where the network is.
        view: How images are shown; None shows them whole.
        samples: Sample ids to look at, [B]; None takes all.
    """
    chosen = np.arange(len(labels)) if samples is None else samples
    batches = [chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH)]
    training = module.training
    module.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    predictions: list[Tensor] = []
    bins = torch.zeros(_BINS, dtype=torch.float64, device=device)  # of each: right rows less their confidence
    with torch.no_grad():  # a student may keep what it made here, a table of positions say, for the next step
        for batch in renderer.batches(view or make_views("none", 1, 0)[0], batches):
            logits = module(preprocessing.normalize(batch.pixels[0].to(device))).float()
            target = torch.from_numpy(labels[batch.samples]).to(device)
            loss += F.cross_entropy(logits, target, reduction="sum").double()
            confidence, predicted = logits.softmax(1).max(1)
            gap = (predicted == target).double() - confidence.double()
            bins.index_add_(0, (confidence * _BINS).long().clamp_max(_BINS - 1), gap)
            predictions.append(predicted)
    module.train(training)
    found = torch.cat(predictions).cpu().numpy()
    ece = float(bins.abs().sum()) / len(chosen)
    return Evaluation(float((found == labels[chosen]).mean()), float(loss) / len(chosen), ece, found)
