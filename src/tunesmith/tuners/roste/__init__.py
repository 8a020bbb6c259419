"""RoSTE: tuning under four-bit weights, activations and cache, with rotations where they help."""

from typing import TYPE_CHECKING

from tunesmith.core.lazy import lazy_exports

__all__ = [
    "QuantizedWeight",
    "Quantizer",
    "RosteConfig",
    "RosteExport",
    "RotatedQuantLinear",
    "RotationChoice",
    "apply_roste",
    "dequantize",
    "export",
    "fake_quant",
    "is_roste_folder",
    "load_roste",
    "quantize",
    "quantizers_off",
    "roste_layers",
    "roste_state",
    "search_rotations",
]

if TYPE_CHECKING:
    from tunesmith.tuners.roste.config import RosteConfig
    from tunesmith.tuners.roste.exporting import QuantizedWeight, RosteExport, export
    from tunesmith.tuners.roste.layers import RotatedQuantLinear
    from tunesmith.tuners.roste.quantizer import Quantizer, dequantize, fake_quant, quantize
    from tunesmith.tuners.roste.saving import is_roste_folder, load_roste
    from tunesmith.tuners.roste.search import RotationChoice
    from tunesmith.tuners.roste.transform import (
        apply_roste,
        quantizers_off,
        roste_layers,
        roste_state,
        search_rotations,
    )
else:
    __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "Quantizer": "quantizer",
            "QuantizedWeight": "exporting",
            "RosteConfig": "config",
            "RosteExport": "exporting",
            "RotatedQuantLinear": "layers",
            "RotationChoice": "search",
            "apply_roste": "transform",
            "dequantize": "quantizer",
            "export": "exporting",
            "fake_quant": "quantizer",
            "is_roste_folder": "saving",
            "load_roste": "saving",
            "quantize": "quantizer",
            "quantizers_off": "transform",
            "roste_layers": "transform",
            "roste_state": "transform",
            "search_rotations": "transform",
        },
    )
