"""Fault 11: a mesh that does not fit the devices, or does not divide rows or experts: refused before anything is compiled."""

import jax
import pytest
from samples import tiny_run

from omni_jax.errors import UserError
from omni_jax.train import stages

CASES = {
    'product': ({'mesh.data': 3}, r"mesh \{'data': 3, .* wants 3 devices, there are 8; set config\.mesh so that the product divides 8"),
    'two_open': ({'mesh.data': -1, 'mesh.fsdp': -1}, 'at most one of them -1'),
    'rows': ({'data.budget.rows': 12}, r"batch of 12 rows does not divide by 8 devices .*; nearest: 8"),
    'experts': ({'mesh.data': 1, 'mesh.expert': 8, 'data.budget.rows': 8}, "4 experts do not divide by 8 devices of axis 'expert'"),
    'heads': ({'model.decoder.kv_heads': 3, 'data.budget.rows': 8}, '2 heads do not divide by 3'),
}


@pytest.mark.parametrize('case', CASES)
def test_fault_11_what_does_not_divide_is_refused_before_compilation(tmp_path, monkeypatch, case):
  values, said = CASES[case]
  def compiled(*_, **__):
    raise AssertionError('compiled')
  config = tiny_run()
  for name, value in values.items():
    config.update_from_flattened_dict({name: value})
  monkeypatch.setattr(jax, 'jit', compiled)
  with pytest.raises(UserError, match=said):
    stages.run_all(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
