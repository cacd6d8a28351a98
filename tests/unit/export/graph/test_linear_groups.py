from __future__ import annotations

from mexma_export.checkpoint.checkpoint import Checkpoint
from mexma_export.graph.linear_groups import all_groups, group_of, linears_of, multiplications


def test_groups_divide_the_linear_layers_of_the_model(checkpoint: Checkpoint) -> None:
    groups = all_groups(checkpoint.config)
    linears = [linear for group in groups for linear in linears_of(group)]
    matrices = {name for name, info in checkpoint.tensors.items() if name.startswith("layer.") and len(info.shape) == 2}
    assert sorted(f"{linear}.weight" for linear in linears) == sorted(matrices)
    assert [group_of(linear) for linear in linears] == [group for group in groups for _ in linears_of(group)]


def test_multiplications_are_the_weights_of_a_group(checkpoint: Checkpoint) -> None:
    found = multiplications(checkpoint.config)
    assert tuple(found) == all_groups(checkpoint.config)
    for group in found:
        shapes = [checkpoint.tensors[f"{linear}.weight"].shape for linear in linears_of(group)]
        assert found[group] == sum(rows * columns for rows, columns in shapes)
