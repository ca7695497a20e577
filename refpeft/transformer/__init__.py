"""The frozen base model: configuration, weights, and the forward pass of one layer and of the stack of them."""
