"""How good generated images are: images stream into frozen networks, features are kept, figures are read off them."""
