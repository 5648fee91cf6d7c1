"""Every protocol by its name."""

from franca.eval.protocol import Protocol
from franca.eval.protocols import in_context, knn

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (knn.PROTOCOL, in_context.PROTOCOL)}
