"""What is found out about a model before it serves: skip sets and the anchors that choose them."""
