"""Prodigy against the formulas of its paper, computed in float64."""

import math

import numpy as np
import pytest
import torch

from uhr.train.optimisers.prodigy import Prodigy

TARGETS = (np.array([3.0, -2.0, 0.5]), np.array([[1.0, -4.0]]))
CURVATURE = (np.array([1.0, 10.0, 0.1]), np.array([[2.0, 0.5]]))


def paper(steps, rates, decay=0.0, bias_correction=False, safeguard=False, d0=1e-3, beta1=0.9, beta2=0.999):
    """The trajectory of (x, d) of algorithm 4 on a quadratic, by its lines."""
    beta3, eps, d, r = math.sqrt(beta2), 1e-8, d0, 0.0
    x0 = [np.zeros_like(target) for target in TARGETS]
    x = [value.copy() for value in x0]
    m, v, s = ([np.zeros_like(target) for target in TARGETS] for _ in range(3))
    found = []
    for k in range(steps):
        gamma = rates[k]
        if bias_correction:
            gamma *= math.sqrt(1 - beta2 ** (k + 1)) / (1 - beta1 ** (k + 1))
        g = [c * (value - target) for c, value, target in zip(CURVATURE, x, TARGETS, strict=True)]
        m = [beta1 * a + (1 - beta1) * d * b for a, b in zip(m, g, strict=True)]
        v = [beta2 * a + (1 - beta2) * d**2 * b**2 for a, b in zip(v, g, strict=True)]
        distance = sum((b * (start - value)).sum() for b, start, value in zip(g, x0, x, strict=True))
        r = beta3 * r + (1 - beta3) * gamma * d**2 * distance
        inside = 1 if safeguard else gamma
        s = [beta3 * a + (1 - beta3) * inside * d**2 * b for a, b in zip(s, g, strict=True)]
        hat = r / sum(np.abs(a).sum() for a in s)
        x = [
            value - gamma * d * (a / (np.sqrt(b) + d * eps) + decay * value)
            for value, a, b in zip(x, m, v, strict=True)
        ]
        d = max(d, hat)
        found.append(([value.copy() for value in x], d))
    return found


@pytest.mark.parametrize(
    ("options", "rates"),
    [
        ({}, [1.0] * 60),
        # URAE's, with a warm-up
        (
            {"weight_decay": 0.01, "bias_correction": True, "safeguard_warmup": True},
            [min(1, (k + 1) / 10) for k in range(60)],
        ),
        ({"bias_correction": True}, [0.5] * 60),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_the_papers_trajectory_with_one_d_over_all_groups(options, rates, groups):
    parameters = [torch.nn.Parameter(torch.zeros(target.shape)) for target in TARGETS]
    split = [parameters] if groups == 1 else [[each] for each in parameters]
    plain = {"weight_decay": 0.0, "bias_correction": False, "safeguard_warmup": False, **options}
    optimiser = Prodigy([{"params": each} for each in split], d0=1e-3, **plain)
    expected = paper(60, rates, plain["weight_decay"], plain["bias_correction"], plain["safeguard_warmup"])
    for rate, (values, d) in zip(rates, expected, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = rate
        for parameter, curvature, target in zip(parameters, CURVATURE, TARGETS, strict=True):
            gradient = torch.from_numpy(curvature) * (parameter.detach().double() - torch.from_numpy(target))
            parameter.grad = gradient.float()
        optimiser.step()
        for parameter, value in zip(parameters, values, strict=True):
            np.testing.assert_allclose(parameter.detach().numpy(), value, rtol=2e-3, atol=1e-5)
        assert {group["d"] for group in optimiser.param_groups} == {optimiser.param_groups[0]["d"]}
        assert optimiser.param_groups[0]["d"] == pytest.approx(d, rel=1e-3)
    assert expected[-1][1] > 100 * 1e-3


def test_a_parameter_without_a_gradient_changes_nothing_and_a_rate_of_zero_does_no_harm():
    with_, without = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimiser = Prodigy([with_, without])
    optimiser.step()
    with_.grad = torch.ones(2)
    optimiser.param_groups[0]["lr"] = 0.0
    optimiser.step()
    assert with_.tolist() == without.tolist() == [1, 1]
    assert without not in optimiser.state
    assert optimiser.param_groups[0]["d"] == 1e-6
