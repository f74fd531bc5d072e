"""Plain neurons on packed bits: integer products in, packed spikes out, nothing of floats in between."""
