"""Operations, bytes and seconds of a call or of a set, computed from shapes without any weights."""
