"""The VAE: F8 to F16, and exact encoding and decoding of images of any size in bounded memory."""
