"""Pool: runs become models. Which runs may be compared, which folds make one test, which seeds repeat one another.

In: runs with predictions. Out: Models with p (S,N,K): S trainings, N samples that each was tested on once.
Called by the report and the CLI. It knows no figure and no picture.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError
from stillwatch.evaluation import lineage
from stillwatch.evaluation.lineage import COMPRESSED, KINDS, FoldSeed
from stillwatch.predictions import Predictions, has, read
from stillwatch.recipe import Fit, Net, Recipe
from stillwatch.run import Run

Block: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # folds, seeds: a run for each pair of them


@dataclass(frozen=True)
class Entry:
    """One run, and what it said."""

    run: Run
    recipe: Recipe
    fold: int
    seed: int
    said: Predictions

    @property
    def kind(self) -> str:
        return str(self.run.info.kind)

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def cell(self) -> FoldSeed:
        return self.fold, self.seed

    @property
    def exported(self) -> bool:
        """A file of a bundle, told by a runtime, and no net of the lab's."""
        return self.run.info.runtime is not None

    @property
    def net(self) -> Net:
        return self.recipe.teacher.net if lineage.side(self.run) == "teacher" else self.recipe.student.net

    @property
    def plan(self) -> Fit:
        return lineage.plan(self.run, self.recipe)


@dataclass(frozen=True)
class Model:
    """The runs of one kind, pooled: their folds put together, their seeds stacked."""

    name: str  # "distilled"; "violence/distilled" where several recipes are compared
    entries: list[Entry]  # the runs it is made of
    folds: list[int]
    seeds: list[int]
    said: Predictions  # of the first seed, sorted by id; its p is that seed's
    p: NDArray[np.float32]  # (S,N,K), in the order of seeds

    @property
    def kind(self) -> str:
        return self.entries[0].kind

    @property
    def family(self) -> str:
        """What stands before the kind: "" or "violence" or "violence/smallcnn"."""
        return _family(self.name)

    @property
    def exported(self) -> bool:
        return self.entries[0].exported


def comparison_set(run: Run, split: str) -> list[Run]:
    """A run with what it must be read beside, itself last: for a compressed one what it was made from, back to the
    teacher, and the narrower student that pruning must beat; as far as they took the same test."""
    if run.info.kind not in COMPRESSED:
        return [run]
    above = lineage.ancestors(run, {})
    pruned = next((one for one in (run, *above) if one.info.kind == "pruned"), None)
    narrow = lineage.baseline(pruned) if pruned else None
    wanted = lineage.test(run, run.recipe)

    def stands(one: Run) -> bool:
        return one.info.status == "done" and has(one, split) and lineage.test(one, one.recipe) == wanted

    return [*filter(stands, [*reversed(above), *([narrow] if narrow else [])]), run]


def enter(runs: Sequence[Run], split: str) -> list[Entry]:
    """Open the predictions of finished runs of one and the same split.

    Raises UserError for no runs, an audit, an unfinished run, a missing predictions file, or two runs that were not
    tested on the same split of the same data.
    """
    entries = []
    for run in {run.path.resolve(): run for run in runs}.values():
        kind, status = run.info.kind, run.info.status
        if kind not in KINDS + COMPRESSED and run.info.runtime is None:
            known = ", ".join(KINDS + COMPRESSED)
            raise UserError(f"{run.path}: an {kind} run has nothing to compare; give {known} runs")
        if status != "done":
            raise UserError(
                f'{run.path}: status is "{status}": finish it with the command that made it, or leave it out'
            )
        recipe = run.recipe
        entries.append(Entry(run, recipe, *lineage.cell(run, recipe), read(run, split)))
    if not entries:
        raise UserError("compare: no runs given; `stillwatch ls` shows the runs there are")
    for entry in entries:
        _same_test(entries[0], entry)
    return entries


def _same_test(one: Entry, other: Entry) -> None:
    mine, theirs = lineage.test(one.run, one.recipe), lineage.test(other.run, other.recipe)
    for key, value in mine.items():
        if theirs[key] != value:
            raise UserError(
                f"{one.run.path} and {other.run.path} cannot be compared: {key} is {value!r} in the first and "
                f"{theirs[key]!r} in the second"
            )
    if other.said.p.shape[1] != len(other.recipe.labels):
        given, wanted = other.said.p.shape[1], len(other.recipe.labels)
        raise UserError(f"{other.run.path}: {given} probabilities but {wanted} labels; judge it again")


def models(entries: Sequence[Entry]) -> tuple[list[Model], list[str]]:
    """Entries -> models in the order teacher, alone, distilled and what came of them, family by family; and what had
    to be left out.

    Alone and distilled are cut to the (fold, seed) pairs that both have, and each model to a full block of folds ×
    seeds: as many folds as one seed covers, then all seeds that cover these. Raises UserError where two runs claim the
    same fold and seed, folds overlap, or two runs of one fold were tested on different samples.
    """
    named = _named(entries)
    kinds = {name: next(iter(cells.values())).kind for name, cells in named.items()}
    blocks: dict[str, Block] = {}
    left: list[str] = []
    students = {name: cells for name, cells in named.items() if kinds[name] in KINDS[1:]}
    for family in dict.fromkeys(map(_family, students)):
        blocks |= _pairs({name: cells for name, cells in students.items() if _family(name) == family}, left)
    for name, cells in named.items():
        if kinds[name] not in KINDS:  # in the cells of the students that it came of, where it has any of them
            near = [blocks[student] for student in students if _family(student) == _family(name)]
            theirs = {cell for cell in cells for folds, seeds in near if cell[0] in folds and cell[1] in seeds}
            blocks[name] = _block(theirs or cells)
    for name, cells in named.items():
        if kinds[name] == "teacher":  # on its students' folds, where it has them
            pupils = [name for name in blocks if kinds[name] != "teacher" and _recipe(named[name]) == _recipe(cells)]
            blocks[name] = _block(cells, {fold for pupil in pupils for fold in blocks[pupil][0]})
    recipes = list(dict.fromkeys(map(_recipe, named.values())))
    order = {name: (recipes.index(_recipe(named[name])), kinds[name] != "teacher", _family(name)) for name in named}
    names = sorted(named, key=lambda name: (order[name], _rank(kinds[name])))
    found = {name: _pooled(name, named[name], *blocks[name]) for name in names}
    for name in names:
        left += _left_out(name, named[name], *blocks[name])
        partner = found.get(name.removesuffix("alone") + "distilled")
        if kinds[name] == "alone" and partner and blocks[name] == blocks[partner.name]:
            _aligned(found[name], partner)
    return list(found.values()), left


def shared(one: Model, other: Model) -> tuple[Model, Model] | None:
    """Both, cut to the folds and seeds that both have, so that they can be compared in pairs; None where they share
    none. Raises UserError where they were tested on different samples there."""
    cells = [{entry.cell: entry for entry in model.entries} for model in (one, other)]
    both = set(cells[0]) & set(cells[1])
    if not both:
        return None
    first, second = (_pooled(m.name, c, *_block(both)) for m, c in zip((one, other), cells, strict=True))
    _aligned(first, second)
    return first, second


def _rank(kind: str) -> int:
    known = KINDS + COMPRESSED
    return known.index(kind) if kind in known else len(known)


def _family(name: str) -> str:
    return name.rpartition("/")[0]


def _recipe(cells: dict[FoldSeed, Entry]) -> str:
    return next(iter(cells.values())).recipe.name


def _named(entries: Sequence[Entry]) -> dict[str, dict[FoldSeed, Entry]]:
    """{model name: {(fold, seed): entry}}: the kind alone where that tells them apart, else recipe/kind or
    recipe/net/kind, and how it was compressed where one kind was so in several ways."""
    given = {entry.name: entry.run for entry in entries}
    how = [lineage.stage(entry.run, given) for entry in entries]
    variants: dict[tuple[str, bool], list[str]] = {}  # (recipe, teacher or student) -> the nets that occur
    stages: dict[tuple[str, str, str], set[str]] = {}  # (recipe, net, kind) -> how it was compressed
    for entry, stage in zip(entries, how, strict=True):
        nets = variants.setdefault((entry.recipe.name, entry.kind == "teacher"), [])
        if _net(entry) not in nets:
            nets.append(_net(entry))
        stages.setdefault((entry.recipe.name, _net(entry), entry.kind), set()).add(stage)
    single = len({recipe for recipe, _ in variants}) == 1 and all(len(nets) == 1 for nets in variants.values())
    named: dict[str, dict[FoldSeed, Entry]] = {}
    for entry, stage in zip(entries, how, strict=True):
        nets = variants[entry.recipe.name, entry.kind == "teacher"]
        steps = [] if single else [entry.recipe.name]
        if len(nets) > 1:
            same = [net for net in nets if json.loads(net)["name"] == entry.net.name]
            number = same.index(_net(entry)) + 1
            steps.append(entry.net.name.replace("/", "-") + (f"-{number}" if number > 1 else ""))
        steps.append(stage if len(stages[entry.recipe.name, _net(entry), entry.kind]) > 1 else entry.kind)
        cells = named.setdefault("/".join(steps), {})
        other = cells.setdefault(entry.cell, entry)
        if other is not entry:
            raise UserError(
                f"{other.run.path} and {entry.run.path} are both {entry.kind} runs of fold {entry.fold} and seed "
                f"{entry.seed}: leave one out, or give their recipes different names"
            )
    return named


def _net(entry: Entry) -> str:
    net = entry.net.model_dump(mode="json")
    if net["weights"] not in ("imagenet", "scratch"):  # a file or run may differ from fold to fold
        net["weights"] = "file"
    return json.dumps(net, sort_keys=True)


def _pairs(students: dict[str, dict[FoldSeed, Entry]], left: list[str]) -> dict[str, Block]:
    """The folds and seeds each student is judged on: the same for alone and distilled, where they share any."""
    if len(students) < 2:
        return {name: _block(cells) for name, cells in students.items()}
    shared = set.intersection(*(set(cells) for cells in students.values()))
    if not shared:
        left.append("alone and distilled share no fold with the same seed: nothing can be compared in pairs")
        return {name: _block(cells) for name, cells in students.items()}
    return dict.fromkeys(students, _block(shared))


def _block(cells: Iterable[FoldSeed], wanted: Iterable[int] = ()) -> Block:
    """(folds, seeds) of the fullest block: the most of the wanted folds that one seed covers, then every such seed."""
    by_seed: dict[int, set[int]] = {}
    for fold, seed in cells:
        by_seed.setdefault(seed, set()).add(fold)
    if set(wanted) & set().union(*by_seed.values()):
        by_seed = {seed: folds & set(wanted) for seed, folds in by_seed.items() if folds & set(wanted)}
    folds = max(by_seed.values(), key=lambda f: (len(f), sum(f <= other for other in by_seed.values())))
    return tuple(sorted(folds)), tuple(sorted(seed for seed, other in by_seed.items() if folds <= other))


def _pooled(name: str, cells: dict[FoldSeed, Entry], folds: tuple[int, ...], seeds: tuple[int, ...]) -> Model:
    stacked = [_joined([cells[fold, seed] for fold in folds]) for seed in seeds]
    for seed, said in zip(seeds, stacked, strict=True):
        if not _alike(stacked[0], said):
            first, other = (cells[folds[0], s].run.path for s in (seeds[0], seed))
            raise UserError(f"{first} and {other}: these seeds were tested on different samples; judge them again")
    entries = [cells[fold, seed] for seed in seeds for fold in folds]
    return Model(name, entries, list(folds), list(seeds), stacked[0], np.stack([said.p for said in stacked]))


def _joined(entries: Sequence[Entry]) -> Predictions:
    """The folds of one training put together, sorted by id."""
    owner: dict[str, Entry] = {}
    for entry in entries:
        for name in entry.said.id.tolist():
            if owner.setdefault(name, entry) is not entry:
                raise UserError(
                    f"{owner[name].run.path} and {entry.run.path} both tested {name!r}: folds may not overlap, so they "
                    "cannot be put together"
                )
    columns = ("id", "group", "sequence", "y", "p")
    whole = Predictions(*(np.concatenate([getattr(e.said, column) for e in entries]) for column in columns))
    return whole.take(np.argsort(whole.id, kind="stable"))


def _alike(one: Predictions, other: Predictions) -> bool:
    return np.array_equal(one.id, other.id) and np.array_equal(one.y, other.y)


def _aligned(one: Model, other: Model) -> None:
    if not _alike(one.said, other.said):
        first, second = one.entries[0].run.path, other.entries[0].run.path
        raise UserError(f"{first} and {second} were tested on different samples; judge them again")


def _left_out(name: str, cells: dict[FoldSeed, Entry], folds: tuple[int, ...], seeds: tuple[int, ...]) -> list[str]:
    """A line on the runs that the figures are not made of."""
    rest = [entry for cell, entry in sorted(cells.items()) if cell[0] not in folds or cell[1] not in seeds]
    if not rest:
        return []
    names = ", ".join(f"{e.name} (fold {e.fold}, seed {e.seed})" for e in rest[:4])
    more = f" and {len(rest) - 4} more" if len(rest) > 4 else ""
    kept = f"fold {_list(folds)} with seed {_list(seeds)}"
    return [f"{name}: like is compared with like, so its figures are of {kept}; left out: {names}{more}"]


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
