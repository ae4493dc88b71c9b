"""PinSage and its parts, taken away in turn, beside LightGCN and BPR-MF: one harness, three logs."""
