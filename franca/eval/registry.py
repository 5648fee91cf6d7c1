"""Every protocol by its name, in the order of the paper's tables."""

from franca.eval.protocol import Protocol
from franca.eval.protocols import (
    in_context,
    knn,
    linear,
    linear_segmentation,
    logistic,
    overclustering,
    pictures,
    position_protocol,
)

PROTOCOLS: dict[str, Protocol] = {
    module.PROTOCOL.name: module.PROTOCOL
    for module in (knn, linear, logistic, linear_segmentation, in_context, overclustering, position_protocol, pictures)
}
