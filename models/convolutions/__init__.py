"""Graph convolutions by name, one a file: ``CONVOLUTIONS["pinsage"](in_dim, hidden_dim, out_dim)``."""

from fedquilt.registry import Registry

CONVOLUTIONS = Registry("convolution", "models.convolutions")
