"""What an image file says of its maker and its rights: XMP, IPTC and EXIF in the file's own segments."""
