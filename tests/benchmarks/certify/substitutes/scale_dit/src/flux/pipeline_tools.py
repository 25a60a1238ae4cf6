"""Substitute: the order of tokens by windows, and back."""

import torch


def window_permutation(H, W, Wh, Ww):
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    key = ((rows // Wh * (W // Ww) + columns // Ww) * Wh + rows % Wh) * Ww + columns % Ww
    return key.flatten().argsort()


def inverse_permutation(perm):
    return perm.argsort()
