"""fedquilt: federated, device-cloud graph recommendation on Flower.

The version lives in code because our dist-info is absent inside a Flower app bundle.
"""

__version__ = "0.1.0"
