"""Ways to score features. A score always comes with its protocol, the image size and the two sets it compares."""
