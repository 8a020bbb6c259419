"""GORACS against numbers of the authors' code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from tunesmith.numerics.transport import cost_matrix, solve_exact
from tunesmith.select.goracs import GORACSSelector, objective_cost
from tunesmith.select.goracs.objective import scales, unit_range
from tunesmith.select.goracs.search import estimates, greedy, rest_costs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "goracs.json").read_text())["cases"]


def golden(prefix):
    return [pytest.param(case, id=case["name"]) for case in GOLDEN if case["name"].startswith(prefix)]


def array(value):
    return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])


def inputs(case):
    return {name: array(value) for name, value in case["inputs"].items()}


@pytest.mark.parametrize("case", golden("cost_greedy_ot"))
def test_golden_cost_greedy_and_estimates(case):
    p, data, out = case["params"], inputs(case), case["outputs"]
    C = unit_range(
        objective_cost(data["X_train"], data["X_valid"], gradient_norm=data["grad_norms"], lam=p["lambda"])
    )
    tol = case["tolerance"]
    assert_allclose(C, array(out["C"]), atol=tol)
    S = greedy(C, p["n"])
    assert S.tolist() == out["S_greedy"]
    solved = solve_exact(C[S])
    assert solved.cost == pytest.approx(out["ot_value"], abs=tol)
    assert_allclose(solved.f, array(out["u_on_S_centred"]), atol=tol)
    f = rest_costs(C[S] - solved.f[:, None])[0]
    assert_allclose(f, array(out["f_per_validation_row"]), atol=tol)
    est, y = estimates(C, np.arange(p["T"]), f[None], p["n"], largest=True)
    assert_allclose(y, array(out["y_hat"]), atol=tol)
    assert_allclose(est, array(out["est"]), atol=tol)


@pytest.mark.parametrize("case", golden("select"))
def test_golden_selection(case):
    p, data, out = case["params"], inputs(case), case["outputs"]
    selector = GORACSSelector(
        lam=p["lambda"], n_candidates=p["c"], max_exchanges=p["max_exchanges"], variant="official"
    ).fit(data["X_train"], target_embedding=data["X_valid"], gradient_norm=data["grad_norms"])
    assert selector.select(p["n"]).tolist() == out["S_final_in_code_order"]
    assert_allclose(selector.objective_path_, out["objective_path"], atol=case["tolerance"])
    ours = GORACSSelector(lam=p["lambda"], n_candidates=None).fit(
        data["X_train"], target_embedding=data["X_valid"], gradient_norm=data["grad_norms"]
    )
    ours.select(p["n"])
    assert ours.objective_path_[-1] <= out["objective_path"][-1] + 1e-9
    if "brute_force_minimum_own_check" in out:
        assert ours.objective_path_[-1] == pytest.approx(out["brute_force_minimum_own_check"], abs=1e-9)


@pytest.mark.parametrize("case", golden("greedy"))
def test_golden_greedy(case):
    assert greedy(array(case["inputs"]["C"]), case["params"]["n"]).tolist() == case["outputs"]["S_greedy"]


@pytest.mark.parametrize("case", golden("label_enhanced"))
def test_golden_label_enhanced(case):
    p, data, out = case["params"], inputs(case), case["outputs"]
    selector = GORACSSelector(
        lam=p["lambda"], n_candidates=p["c"], max_exchanges=p["max_exchanges"], variant="official"
    ).fit(
        data["X_train"],
        data["y_train"],
        target_embedding=data["X_valid"],
        gradient_norm=data["grad_norms"],
        target_labels=data["y_valid"],
    )
    assert selector.select(p["n"]).tolist() == out["S_final"]
    assert selector.class_budgets_.tolist() == [out["budget_positive"], out["budget_negative"]]
    assert selector.objective_path_[-1] == pytest.approx(
        0.6 * out["ot_value_positive"] + 0.4 * out["ot_value_negative"], abs=case["tolerance"]
    )


@pytest.mark.parametrize("case", golden("init_scaling"))
def test_golden_scaling(case):
    data, out = inputs(case), case["outputs"]
    distance = cost_matrix(data["X_train"], data["X_valid"], "euclidean")
    top, peak = scales([distance], data["grad_norms"], "test")
    assert_allclose(distance / top, array(out["d_scaled"]), atol=case["tolerance"])
    assert_allclose(data["grad_norms"] / peak, array(out["g_scaled"]), atol=case["tolerance"])
