"""Every combination of alternatives is one run."""

import pytest

from aitrain.errors import RecipeError
from aitrain.sweep import sweep


def test_a_sweep_is_every_combination() -> None:
    assert sweep(["optim.lr=1e-4,2e-4", "seed=range(0,2)", "run.name='a,b'"]) == [
        ["optim.lr=0.0001", "seed=0", "run.name='a,b'"],
        ["optim.lr=0.0001", "seed=1", "run.name='a,b'"],
        ["optim.lr=0.0002", "seed=0", "run.name='a,b'"],
        ["optim.lr=0.0002", "seed=1", "run.name='a,b'"],
    ]
    assert sweep(["strategy=glob(deepspeed*)"])[2] == ["strategy=deepspeed_zero3"]
    assert sweep([]) == [[]]
    with pytest.raises(RecipeError, match="is refused"):
        sweep(["+a=1,2"])
