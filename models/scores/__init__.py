"""Models that judge or describe an image: curation and evaluation share them.

A scorer is made by its `load` from weights that the user named, and has

    view                 the size at which it expects images (`images.View`)
    weights_hash         SHA-256 of what was loaded; None if the scorer has no weights
    score(images)        a mapping of name -> array with one value for each image

Images are uint8 [H, W, 3], upright sRGB, as NumPy arrays or tensors; those of one call may differ in size.
"""
