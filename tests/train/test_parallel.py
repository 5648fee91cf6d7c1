"""What sharing the work may be set to, and that recomputing and compiling blocks changes no result and no name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from franca import devices
from franca.config import ConfigError
from franca.models import VisionTransformer
from franca.train import parallel
from franca.train.config import TrainConfig
from franca.train.parallel import ParallelConfig, prepare_block, whole_state
from franca.train.trainer import Trainer
from tests.computed import Computed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "split"}, "parallel.strategy='split' must be one of replicate, shard, hybrid"),
        ({"activation_checkpointing": "some"}, "parallel.activation_checkpointing='some' must be one of none"),
        ({"shard_size": -1}, "parallel.shard_size=-1 must not be negative"),
        ({"timeout_minutes": 0.0}, "parallel.timeout_minutes=0.0 must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**options)


@pytest.mark.parametrize(
    ("options", "shards"),
    [
        ({"strategy": "replicate"}, 1),
        ({"strategy": "shard"}, 16),
        ({"strategy": "hybrid"}, 8),
        ({"strategy": "hybrid", "shard_size": 4}, 4),
    ],
)
def test_processes_that_share_one_copy(options: dict[str, Any], shards: int) -> None:
    """16 processes on machines of 8."""
    assert ParallelConfig(**options).shards(16, per_machine=8) == shards


def test_groups_that_do_not_divide_the_processes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parallel\.shard_size=3 does not divide the 16 processes"):
        ParallelConfig(strategy="hybrid", shard_size=3).shards(16, per_machine=8)


class Products:
    """Counts the matrix products of linear layers, forward and again in backward."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


def network() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=28, patch_size=14, embed_dim=16, depth=3, num_heads=2, init_values=1.0, drop_path_rate=0.4
    )


def gradients(model: VisionTransformer) -> dict[str, Tensor]:
    torch.manual_seed(1)
    crops = [torch.randn(4, 3, 28, 28), torch.randn(8, 3, 14, 14)]
    torch.stack([tokens.square().sum() for tokens in model(crops)]).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("how", ["selective", "full"])
def test_recomputed_blocks_give_the_same_gradients_and_keep_their_names(how: str) -> None:
    """Also with stochastic depth: the second time draws what the first drew."""
    plain, changed = network(), network()
    for block in changed.blocks:
        prepare_block(block, ParallelConfig(activation_checkpointing=how), learns=True)
    counted = Products(changed)
    expected, found = gradients(plain), gradients(changed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert changed.state_dict().keys() == plain.state_dict().keys()
    assert counted.count == 2 * len([m for m in changed.blocks.modules() if isinstance(m, nn.Linear)])


@pytest.mark.parametrize(("how", "products"), [("none", 1), ("selective", 1), ("full", 2)])
def test_selective_keeps_products_full_does_them_again(how: str, products: int) -> None:
    """Norms are done again by both."""
    model = network().eval()
    block = model.blocks[0]
    prepare_block(block, ParallelConfig(activation_checkpointing=how), learns=True)
    tokens = torch.randn(5, 16, requires_grad=True)
    out = block(tokens, [(1, 5)])
    with Computed() as computed:
        out.sum().backward()
    layers = sum(isinstance(module, nn.Linear) for module in block.modules())
    assert computed.names.count("aten.addmm.default") == (products - 1) * layers
    assert ("aten.native_layer_norm.default" in computed.names) == (how != "none")


def test_the_teacher_is_not_recomputed() -> None:
    model = network()
    for block in model.blocks:
        prepare_block(block, ParallelConfig(activation_checkpointing="full"), learns=False)
        assert "forward" not in vars(block) or block.forward.__func__ is type(block).forward
    counted = Products(model)
    gradients(model)
    assert counted.count == len([m for m in model.blocks.modules() if isinstance(m, nn.Linear)])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """All graphs that torch.compile makes, which are run as they are."""
    found: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        found.append(module)
        return module.forward

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile_(function, backend=backend, **options))
    torch._dynamo.reset()
    return found


@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("how", ["none", "full"])
def test_all_blocks_compile_once(how: str, graphs: list[torch.fx.GraphModule]) -> None:
    plain, changed = network(), network()
    for model in (plain, changed):
        for block in model.blocks:
            block.drop_path_rate = 0.0
    for block in changed.blocks:
        prepare_block(block, ParallelConfig(activation_checkpointing=how), learns=True, compiled=True)
    expected, found = gradients(plain), gradients(changed)
    assert len(graphs) == 1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    assert changed.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_teacher_and_student_compile_once_each_for_their_own_shapes(graphs: list[torch.fx.GraphModule]) -> None:
    """Whatever crops stochastic depth draws, and whatever else is evaluated now and then."""
    teacher, student = network().eval().requires_grad_(False), network()
    for model in (teacher, student):
        for block in model.blocks:
            prepare_block(block, ParallelConfig(), learns=model is student, compiled=True)
    for _ in range(3):
        teacher(torch.randn(4, 3, 28, 28))
        torch.cat(student([torch.randn(4, 3, 28, 28), torch.randn(8, 3, 14, 14)])).sum().backward()
        assert len(graphs) == 2
    inputs = [node.meta["example_value"] for graph in graphs for node in graph.graph.nodes if node.op == "placeholder"]
    assert not any(isinstance(size, torch.SymInt) for value in inputs for size in value.shape)
    with torch.compiler.set_stance("eager_on_recompile"):
        teacher(torch.randn(3, 3, 28, 28))
    assert len(graphs) == 2


def test_blocks_are_compiled_on_request_or_where_the_compiler_works(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, elsewhere = torch.device("cpu"), torch.device("meta")
    assert [ParallelConfig(compile=way).compiles(cpu) for way in (True, False, None)] == [True, False, False]
    trouble = {"cpu": "slow", "meta": ""}
    monkeypatch.setattr(parallel, "compiler_trouble", lambda device: trouble[device.type])
    assert [ParallelConfig(compile=way).compiles(elsewhere) for way in (True, False, None)] == [True, False, True]


def test_a_compiler_that_does_not_work_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no C compiler was found\nin 20 lines")

    for spec, says in ((None, "Triton is not installed"), (object(), "no C compiler was found")):
        monkeypatch.setattr(devices, "find_spec", lambda _, spec=spec: spec)
        monkeypatch.setattr(torch, "compile", broken)
        assert devices.compiler_trouble.__wrapped__(torch.device("meta")) == says


def test_one_process_trains_the_same_with_recomputed_blocks(tiny: Callable[..., TrainConfig]) -> None:
    trainers = [
        Trainer(tiny("steps=2", f"parallel.activation_checkpointing={how}", f"output={tiny().output}-{how}"))
        for how in ("none", "full")
    ]
    for trainer in trainers:
        trainer.run()
    states = [whole_state(trainer.pair) for trainer in trainers]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_number_of_processes_that_is_not_there_is_refused(tiny: Callable[..., TrainConfig]) -> None:
    config = tiny("world_size=8")
    assert config.effective_batch == 8 * config.data.batch_size
    with pytest.raises(ConfigError, match="world_size=8, but the number of processes started is 1"):
        Trainer(config)
