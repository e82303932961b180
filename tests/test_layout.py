"""The package's layout: who imports whom, and how long functions are."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "sb3_ddpg_scratch"
# From the top down, as the design has it: what a module imports stands below it. Parts in one line are on one level.
LEVELS = [
    ["__main__"],
    ["cli"],
    ["compare"],
    ["bench"],
    ["runs"],
    ["zoo"],
    ["diagnostics"],
    ["report"],
    ["parity"],
    ["ddpg"],
    ["model_setup"],
    ["checkpoint"],
    ["export"],
    ["data"],
    ["model_file"],
    ["rollout", "learn_setup"],
    ["training_log", "vec_env_step"],
    ["environment_check", "learning_rates", "alarms"],
    ["updates", "batches"],
    ["policies"],
    ["hindsight", "priorities", "mixed_replay"],
    ["dict_replay"],
    ["networks", "replay", "noise", "soft_update"],
]
LINES, PARAMETERS = 60, 8


def tree_of(path):
    return ast.parse(path.read_text())


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): tree_of(path) for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(tree):
    """Modules of the package that a module imports anywhere, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "sb3_ddpg_scratch":
            module = str(node.module).removeprefix("sb3_ddpg_scratch").removeprefix(".")
            below = {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {name if name in MODULES else module for name in below}
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names if alias.name.partition(".")[0] == "sb3_ddpg_scratch"}
            found |= {name.removeprefix("sb3_ddpg_scratch").removeprefix(".") for name in names}
    # The package itself is imported for its version and its folder.
    return found - {""}


IMPORTS = {name: imports_of(tree) for name, tree in MODULES.items() if name}


def level_of(module):
    """The place from the top of a module's part; helpers that the design does not name are below everything."""
    part = module.partition(".")[0]
    return next((level for level, parts in enumerate(LEVELS) if part in parts), len(LEVELS))


def test_every_part_of_the_layout_is_there():
    parts = {name.partition(".")[0] for name in IMPORTS}
    assert {part for level in LEVELS for part in level} <= parts
    assert sum(map(len, IMPORTS.values())) > 200


def test_no_module_imports_from_a_higher_one():
    wrong = [(a, b) for a, imported in IMPORTS.items() for b in imported if level_of(b) < level_of(a)]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for imported in sorted(IMPORTS.get(module, ())):
                visit(imported)
            done.add(path.pop())

    for module in IMPORTS:
        visit(module)


# Each step of Algorithm 1 of Lillicrap et al. (2015), with the function that does it.
ALGORITHM = {
    "initialize the networks and their targets": "policies._build",
    "initialize the replay buffer": "model_setup.own_noise_and_buffer",
    "initialize the random process N": "model_setup.own_noise_and_buffer",
    "select an action, mu(s) + N": "rollout.steps.select_actions",
    "store the transition": "rollout.steps.store_transition",
    "sample a minibatch": "updates.autograd.train",
    "set the TD targets y": "updates.autograd.td_target",
    "update the critic by its loss": "updates.autograd.critic_loss",
    "update the actor by the policy gradient": "updates.autograd.actor_loss",
    "update the target networks": "soft_update.soft_update",
}


@pytest.mark.parametrize("step", ALGORITHM)
def test_each_step_of_the_algorithm_is_two_hops_from_ddpg(step):
    module, _, function = ALGORITHM[step].rpartition(".")
    assert function in {node.name for node in ast.walk(MODULES[module]) if isinstance(node, ast.FunctionDef)}
    one_hop = IMPORTS["ddpg"] | set(re.findall(r"sb3_ddpg_scratch\.([\w.]+\w)", (PACKAGE / "ddpg.py").read_text()))
    two_hops = one_hop.union(*(IMPORTS.get(name, ()) for name in one_hop))
    assert module in two_hops


def is_command(function):
    """Whether Typer reads the function's options from its annotations."""
    annotations = [argument.annotation for argument in function.args.args if argument.annotation is not None]
    return any(isinstance(a, ast.Subscript) and getattr(a.value, "id", "") == "Annotated" for a in annotations)


def parameters_of(function):
    names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


FUNCTIONS = [
    (f"{module}.{function.name}", function)
    for module, tree in MODULES.items()
    for function in ast.walk(tree)
    if isinstance(function, ast.FunctionDef) and function.name != "__init__" and not is_command(function)
]


def test_functions_fit_a_screen_and_take_few_arguments():
    too_long, too_many = [], []
    for name, function in FUNCTIONS:
        if function.end_lineno - function.lineno + 1 > LINES:
            too_long.append(name)
        if len(parameters_of(function)) > PARAMETERS:
            too_many.append(name)
    assert len(FUNCTIONS) > 500
    assert too_long == []
    assert too_many == []
