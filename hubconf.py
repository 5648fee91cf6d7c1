"""Entry points of torch.hub: ``torch.hub.load("/path/to/franca", "franca_vitb14", source="local")``."""

from franca.hub import franca_vitb14, franca_vitg14, franca_vitl14, franca_vits14

dependencies = ["torch"]

__all__ = ["dependencies", "franca_vitb14", "franca_vitg14", "franca_vitl14", "franca_vits14"]
