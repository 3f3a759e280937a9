"""Methods that run in every experiment: one line of a profile, dealt to its blocks."""

from typing import Any

GUARDED = ("entities", "book")
Tree = dict[str, Any]


def with_methods_everywhere(profile: Tree) -> Tree:
    """Add what stands under `methods` to every block of a profile, as read from YAML.

    A block that lists a method of the same name keeps its own line, so that settings may differ
    there. In experiment 4 a method runs in every scenario that the block's own methods run in; in
    experiment 3 it is trained on the science, compared in the other tasks, and attacked if others
    are. What is no list of lines with names stays as it is: the models say what is wrong with it.
    """
    lines = profile.get("methods")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        return profile
    blocks = {name: profile[name] for name in _DEAL if isinstance(profile.get(name), dict)}
    return profile | {name: _DEAL[name](block, lines) for name, block in blocks.items()}


def _listed(block: Tree, lines: list[Tree]) -> Tree:
    own = block.get("methods", [])
    if not isinstance(own, list):
        return block
    taken = [line["name"] for line in own if isinstance(line, dict) and "name" in line]
    return block | {"methods": [*own, *(line for line in lines if line.get("name") not in taken)]}


def _in_every_scenario(block: Tree, lines: list[Tree]) -> Tree:
    scenarios = ["fictitious"]
    for line in block["methods"] if isinstance(block.get("methods"), list) else []:
        found = line.get("scenarios") if isinstance(line, dict) else None
        scenarios = _joined(scenarios, list(found) if isinstance(found, (list, dict)) else [])
    return _listed(block, [line | {"scenarios": scenarios} for line in lines])


def _beside_the_guard(block: Tree, lines: list[Tree]) -> Tree:
    names = [line["name"] for line in lines if "name" in line]
    beside, guards = block.get("beside", {}), block.get("guards")
    if isinstance(guards, dict) and isinstance(beside, dict):
        others = {place: _joined(beside.get(place, []), names) for place in GUARDED}
        block = block | {"beside": beside | {p: o for p, o in others.items() if p in guards}}
    asked = block.get("evaluation")
    if isinstance(asked, dict) and asked.get("robustness_models"):
        attacked = _joined(asked["robustness_models"], names)
        block = block | {"evaluation": asked | {"robustness_models": attacked}}
    return _listed(block, lines) if block.get("science") else block


def _joined(own: Any, names: list[Any]) -> Any:
    return [*own, *(each for each in names if each not in own)] if isinstance(own, list) else own


_DEAL = {
    "harmful": _listed,
    "book": _listed,
    "tofu": _in_every_scenario,
    "eco": _beside_the_guard,
}
