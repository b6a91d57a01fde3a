"""TensorRT: the graph, the two scripts that travel with it, and the builders."""
