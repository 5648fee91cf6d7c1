"""Every protocol by its name, in the order of the paper's tables."""

from franca.eval.protocol import Protocol
from franca.eval.protocols import in_context, knn, linear, logistic, overclustering, pictures, position_protocol

PROTOCOLS: dict[str, Protocol] = {
    module.PROTOCOL.name: module.PROTOCOL
    for module in (knn, linear, logistic, in_context, overclustering, position_protocol, pictures)
}
