"""How weights change: rules of one protocol, from back-propagation through time to local plasticity."""
