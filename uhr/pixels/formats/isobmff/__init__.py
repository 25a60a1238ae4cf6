"""The formats that are ISO base media files: HEIF and AVIF, and the AV1 bitstreams in them."""
