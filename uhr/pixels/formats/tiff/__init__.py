"""TIFF and BigTIFF: directories, the header, and strips and tiles to pixels."""
