"""Principal components against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import pdist

from franca.eval.protocols.projection import principal_components


def rows(count: int = 400, dim: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator) * torch.linspace(3, 0.1, dim)
    return torch.randn(count, dim, generator=generator) @ mixing.T + 40


@pytest.mark.parametrize("standardize", [True, False])
def test_components_are_scikit_learns(standardize) -> None:
    given = rows()
    prepared = StandardScaler().fit_transform(given.double().numpy()) if standardize else given.double().numpy()
    reference = PCA(5).fit(prepared)
    expected = reference.transform(prepared)
    found = principal_components(given, 5, standardize)
    scores = found(given).numpy()
    signs = np.sign((scores * expected).sum(axis=0))
    np.testing.assert_allclose(scores * signs, expected, atol=2e-3)
    np.testing.assert_allclose(found.variances.numpy(), expected.var(axis=0), rtol=1e-4)
    assert found.varies.all()


@pytest.mark.parametrize("block", [1, 37, 1000])
def test_blocks_change_nothing(block) -> None:
    expected, found = principal_components(rows(), 4), principal_components(rows(), 4, block=block)
    torch.testing.assert_close(found.variances, expected.variances, rtol=1e-6, atol=0)
    torch.testing.assert_close((found.directions * expected.directions).sum(0).abs(), torch.ones(4).double())


def test_distances_are_kept_by_all_components() -> None:
    given = rows(50).double()
    found = principal_components(given, 99)(given)
    assert found.shape == (50, 12)
    torch.testing.assert_close(pdist(found), pdist(given))


def test_features_that_do_not_vary_are_no_trouble() -> None:
    given = torch.cat([rows(60, 3), torch.full((60, 2), 7.0)], dim=1)
    for standardize in (True, False):
        found = principal_components(given, 5, standardize)
        assert found.varies.tolist() == [True] * 3 + [False] * 2
        assert found(given).isfinite().all()
        assert not principal_components(torch.ones(9, 4), 2, standardize).varies.any()


def test_half_precision_on_disk_is_read_in_blocks(tmp_path) -> None:
    given = rows().half()
    given.numpy().tofile(tmp_path / "rows.bin")
    mapped = torch.from_file(str(tmp_path / "rows.bin"), size=given.numel(), dtype=torch.float16).view_as(given)
    found = principal_components(mapped, 3)
    torch.testing.assert_close(found.variances, principal_components(given.float(), 3).variances)
    assert found(mapped[:5]).dtype == torch.float32
