"""The VAE: F8 to F16, and exact encoding and decoding of pictures of any size in bounded memory."""
