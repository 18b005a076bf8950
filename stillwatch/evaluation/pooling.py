"""Pool comparable runs into models, by fold and seed. Computes no figure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stillwatch.errors import UserError
from stillwatch.predictions import Predictions, has, joined, read
from stillwatch.recipe import Fit, Recipe
from stillwatch.run import KINDS, Run, runs

DISTILLATION = tuple(name for name, kind in KINDS.items() if not kind.compressed)  # teacher, alone, distilled
COMPRESSED = tuple(name for name, kind in KINDS.items() if kind.compressed)


class FoldSeed(NamedTuple):
    fold: int
    seed: int


class Block(NamedTuple):
    folds: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class ModelKey:
    """recipe, net, variant: "" if there is only one."""

    recipe: str
    net: str
    kind: str  # of KINDS, or the name of a bundle's file
    variant: str = ""  # how it was compressed: "0.6", "pruned-0.6"

    @property
    def family(self) -> str:
        """ "", "violence" or "violence/smallcnn"."""
        return "/".join(filter(None, (self.recipe, self.net)))

    @property
    def name(self) -> str:
        """Key in report.json: "distilled", "violence/pruned-0.6"."""
        last = f"{self.kind}-{self.variant}" if self.variant else self.kind
        return f"{self.family}/{last}" if self.family else last

    @property
    def title(self) -> str:
        """ "Student distilled"; "violence: student pruned (0.6)"."""
        words = KINDS[self.kind].title if self.kind in KINDS else self.kind
        words += f" ({self.variant.replace('-', ' ')})" if self.variant else ""
        return f"{self.family}: {words[0].lower()}{words[1:]}" if self.family else words

    @property
    def inline(self) -> str:
        return f"{self.title[0].lower()}{self.title[1:]}" if self.kind in KINDS else self.title


@dataclass(frozen=True)
class Entry:
    run: Run
    cell: FoldSeed
    predictions: Predictions

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe


Cells: TypeAlias = Mapping[FoldSeed, Entry]


@dataclass(frozen=True)
class Model:
    """Folds are pooled, seeds stacked."""

    key: ModelKey
    entries: list[Entry]  # the runs it is made of
    folds: list[int]
    seeds: list[int]
    predictions: Predictions  # of the first seed, sorted by id; its p is that seed's
    p: NDArray[np.float32]  # (S,N,K), in the order of seeds
    fold: NDArray[np.int64]  # (N,) in which each sample was tested

    @property
    def name(self) -> str:
        return self.key.name

    @property
    def kind(self) -> str:
        return self.key.kind

    @property
    def exported(self) -> bool:
        return self.entries[0].run.info.runtime is not None

    @property
    def parents(self) -> list[str]:
        return sorted({parent(entry.run) for entry in self.entries} - {""})


# ---- one run: what it came of, what test it took


def parent(run: Run) -> str:
    return re.split(r"[/\\]", run.info.parent or "")[-1]


def ancestors(run: Run, given: Mapping[str, Run]) -> list[Run]:
    """Nearest first: `given` by name, or in a folder beside it."""
    found: list[Run] = []
    while (name := parent(run)) and len(found) < 9:  # a chain is four long; a ring would have no end
        try:
            run = given.get(name) or Run.open(run.path.parent / name)
        except UserError:
            break
        found.append(run)
    return found


def fit_of(run: Run) -> Fit:
    table = KINDS[run.info.kind].fit if run.info.kind in KINDS else run.side
    return run.recipe.fit_in(table) if table in ("prune", "quantise") else run.recipe.fit_of(run.side)


def cell(run: Run) -> FoldSeed:
    data, seed = run.recipe.data, fit_of(run).seed if run.info.seed is None else run.info.seed
    return FoldSeed(0 if data.split == "official" else data.fold, seed)


def test(run: Run) -> dict[str, object]:
    data, about = run.recipe.data, run.info.fingerprint
    found: dict[str, object] = {"labels": run.recipe.labels, "fingerprint": about, "data.split": data.split}
    if data.split != "official":  # the official test is the same whatever these say
        found |= {"data.seed": data.seed, "data.folds": data.folds}
    return found


def narrow_run(pruned: Run) -> Run | None:
    """The finished narrower student beside it: nearest in arithmetic, then newest."""
    found = [
        run
        for run in runs(pruned.path.parent)
        if (run.info.kind, run.info.status) == ("narrow", "done")
        and run.recipe.name == pruned.recipe.name
        and cell(run) == cell(pruned)
    ]
    wanted = pruned.info.cost.get("macs", 0)
    return min(reversed(found), key=lambda run: abs((run.info.target or 0) - wanted), default=None)


def variant(run: Run, given: Mapping[str, Run]) -> str:
    """Its compression: "0.6" (pruned), "pruned-0.6" (quantised), else ""."""
    kind = run.info.kind
    if kind not in COMPRESSED:
        return ""
    prune = run.recipe.prune
    share = f"{prune.keep:g}" + (f"-size-{prune.size:g}" if prune.size < 1 else "")
    line = ancestors(run, given) if kind != "narrow" else []
    above = line[0] if line and (kind == "quantised" or line[0].info.kind in COMPRESSED) else None
    steps = ["" if kind == "quantised" else share]
    steps += [above.info.kind, variant(above, given)] if above else []
    return "-".join(filter(None, steps))


def comparison_set(run: Run, split: str) -> list[Run]:
    """The runs to read it beside, itself last: those that took the same test.

    Of a compressed run: its ancestors and the narrower student that pruning must beat.
    """
    if run.info.kind not in COMPRESSED:
        return [run]
    above = ancestors(run, {})
    pruned = next((one for one in (run, *above) if one.info.kind == "pruned"), None)
    narrow = narrow_run(pruned) if pruned else None
    others = [*reversed(above), *([narrow] if narrow else [])]
    return [o for o in others if o.info.status == "done" and has(o, split) and test(o) == test(run)] + [run]


# ---- runs -> models


def comparable(run: Run) -> bool:
    """False for an audit: it has no predictions."""
    return run.info.kind in KINDS or run.info.runtime is not None


def enter(runs: Sequence[Run], split: str) -> list[Entry]:
    """Open finished runs' predictions of one split.

    Raises UserError for no runs, an unfinished one, missing predictions or different splits.
    """
    entries: list[Entry] = []
    for run in {run.path.resolve(): run for run in runs}.values():
        info = run.info
        if not comparable(run):
            raise UserError(f"{run.path}: an {info.kind} run has nothing to compare; give {', '.join(KINDS)} runs")
        if info.status != "done":
            how = "finish it with the command that made it, or leave it out"
            raise UserError(f'{run.path}: status is "{info.status}": {how}')
        entries.append(Entry(run, cell(run), read(run, split)))
    if not entries:
        raise UserError("compare: no runs given; `stillwatch ls` shows the runs there are")
    first = entries[0]
    for entry in entries:
        theirs = test(entry.run)
        for key, value in test(first.run).items():
            if theirs[key] != value:
                raise UserError(
                    f"{first.run.path} and {entry.run.path} cannot be compared: {key} is {value!r} in the first and "
                    f"{theirs[key]!r} in the second"
                )
        if (given := entry.predictions.p.shape[1]) != (wanted := len(entry.recipe.labels)):
            raise UserError(f"{entry.run.path}: {given} probabilities but {wanted} labels; judge it again")
    return entries


def models(entries: Sequence[Entry]) -> tuple[list[Model], list[str]]:
    """(teacher, alone, distilled and descendants, by family; lines on what was left out).

    Alone and distilled are cut to common (fold, seed) pairs, each model to a full block of them. Raises UserError if
    two runs claim the same fold and seed, folds overlap, or runs of one fold were tested on different samples.
    """
    keyed = _keyed(entries)
    left: list[str] = []
    blocks = _blocks(keyed, left)
    recipes = {key: next(iter(cells.values())).recipe.name for key, cells in keyed.items()}
    for key, cells in keyed.items():
        if key.kind == "teacher":  # on its students' folds, where it has them
            pupils = [other for other in blocks if other.kind != "teacher" and recipes[other] == recipes[key]]
            blocks[key] = _block(cells, {fold for other in pupils for fold in blocks[other].folds})
    ranks, order = list(KINDS), list(dict.fromkeys(recipes.values()))

    def place(key: ModelKey) -> tuple[int, bool, str, int]:
        rank = ranks.index(key.kind) if key.kind in KINDS else len(ranks)
        return order.index(recipes[key]), key.kind != "teacher", key.family, rank

    keys = sorted(keyed, key=place)
    found = {key: _pooled(key, keyed[key], blocks[key]) for key in keys}
    for key in keys:
        left += _left_out(key, keyed[key], blocks[key])
        partner = found.get(ModelKey(key.recipe, key.net, "distilled")) if key.kind == "alone" else None
        if partner and blocks[key] == blocks[partner.key]:
            _check_aligned(found[key], partner)
            for one, other in zip(found[key].entries, partner.entries, strict=True):
                if np.array_equal(one.predictions.p, other.predictions.p):
                    raise UserError(
                        f"{one.run.path} and {other.run.path} are the same: they agree on all {len(one.predictions)} "
                        "samples to the last digit, so nothing came from a teacher; distil again with a loss that has "
                        "one, such as kd"
                    )
    return list(found.values()), left


def _blocks(keyed: Mapping[ModelKey, Cells], left: list[str]) -> dict[ModelKey, Block]:
    blocks: dict[ModelKey, Block] = {}
    students = {key: cells for key, cells in keyed.items() if key.kind in DISTILLATION[1:]}
    for family in dict.fromkeys(key.family for key in students):
        pair = {key: cells for key, cells in students.items() if key.family == family}
        both = set.intersection(*(set(cells) for cells in pair.values()))
        if not both:
            left.append("alone and distilled share no fold with the same seed: nothing can be compared in pairs")
        blocks |= {key: _block(both or cells) for key, cells in pair.items()}
    for key, cells in keyed.items():
        if key.kind not in DISTILLATION:  # in the cells of the students that it came of, where it has any of them
            near = [blocks[student] for student in students if student.family == key.family]
            theirs = {cell for cell in cells for block in near if cell.fold in block.folds and cell.seed in block.seeds}
            blocks[key] = _block(theirs or cells)
    return blocks


def shared(one: Model, other: Model) -> tuple[Model, Model] | None:
    """Both, cut to common folds and seeds; None if there are none. Raises UserError if their test samples differ."""
    first, second = ({entry.cell: entry for entry in model.entries} for model in (one, other))
    both = set(first) & set(second)
    if not both:
        return None
    pair = _pooled(one.key, first, _block(both)), _pooled(other.key, second, _block(both))
    _check_aligned(*pair)
    return pair


def _keyed(entries: Sequence[Entry]) -> dict[ModelKey, dict[FoldSeed, Entry]]:
    """Sets recipe, net and variant only where the kind is ambiguous."""
    given = {entry.name: entry.run for entry in entries}
    variants = [variant(entry.run, given) for entry in entries]
    nets: dict[tuple[str, bool], list[tuple[str, str]]] = {}  # (recipe, teacher or student) -> (name, net)
    ways: dict[tuple[str, str, str], set[str]] = {}  # (recipe, net, kind) -> how it was compressed
    for entry, way in zip(entries, variants, strict=True):
        known = nets.setdefault((entry.recipe.name, entry.run.info.kind == "teacher"), [])
        if _net(entry) not in known:
            known.append(_net(entry))
        ways.setdefault((entry.recipe.name, _net(entry)[1], entry.run.info.kind), set()).add(way)
    single = len({recipe for recipe, _ in nets}) == 1 and all(len(known) == 1 for known in nets.values())
    keyed: dict[ModelKey, dict[FoldSeed, Entry]] = {}
    for entry, way in zip(entries, variants, strict=True):
        kind, name, net = entry.run.info.kind, entry.run.net.name, _net(entry)
        known = nets[entry.recipe.name, kind == "teacher"]
        number = [other for other in known if other[0] == name].index(net) + 1
        label = name.replace("/", "-") + (f"-{number}" if number > 1 else "")
        several = len(ways[entry.recipe.name, net[1], kind]) > 1
        recipe = "" if single else entry.recipe.name
        key = ModelKey(recipe, label if len(known) > 1 else "", kind, way if several else "")
        other = keyed.setdefault(key, {}).setdefault(entry.cell, entry)
        if other is not entry:
            raise UserError(
                f"{other.run.path} and {entry.run.path} are both {kind} runs of fold {entry.cell.fold} and seed "
                f"{entry.cell.seed}: leave one out, or give their recipes different names"
            )
    return keyed


def _net(entry: Entry) -> tuple[str, str]:
    """Without the weights' file, which may differ by fold."""
    net = entry.run.net
    weights = net.weights if net.weights in ("imagenet", "scratch") else "file"
    return net.name, net.model_copy(update={"weights": weights}).model_dump_json()


def _block(cells: Iterable[FoldSeed], wanted: Iterable[int] = ()) -> Block:
    """The most wanted folds that one seed covers, then all seeds that cover them."""
    by_seed: dict[int, set[int]] = {}
    for fold, seed in cells:
        by_seed.setdefault(seed, set()).add(fold)
    if set(wanted) & set().union(*by_seed.values()):
        by_seed = {seed: folds & set(wanted) for seed, folds in by_seed.items() if folds & set(wanted)}
    folds = max(by_seed.values(), key=lambda f: (len(f), sum(f <= other for other in by_seed.values())))
    return Block(tuple(sorted(folds)), tuple(sorted(seed for seed, other in by_seed.items() if folds <= other)))


def _pooled(key: ModelKey, cells: Cells, block: Block) -> Model:
    folds, seeds = block
    trainings = list[Predictions]()
    for seed in seeds:
        owner, tested = dict[str, Entry](), [cells[FoldSeed(fold, seed)] for fold in folds]
        for entry in tested:
            for name in entry.predictions.id.tolist():
                if owner.setdefault(name, entry) is not entry:
                    raise UserError(
                        f"{owner[name].run.path} and {entry.run.path} both tested {name!r}: folds may not overlap, so "
                        "they cannot be put together"
                    )
        whole = joined([entry.predictions for entry in tested])
        trainings.append(whole.take(np.argsort(whole.id, kind="stable")))
    for seed, predictions in zip(seeds, trainings, strict=True):
        if not _same_samples(trainings[0], predictions):
            first, other = (cells[FoldSeed(folds[0], s)].run.path for s in (seeds[0], seed))
            raise UserError(f"{first} and {other}: these seeds were tested on different samples; judge them again")
    entries = [cells[FoldSeed(fold, seed)] for seed in seeds for fold in folds]
    of = {name: entry.cell.fold for entry in entries for name in entry.predictions.id.tolist()}
    fold = np.array([of[name] for name in trainings[0].id.tolist()])
    p = np.stack([predictions.p for predictions in trainings])
    return Model(key, entries, list(folds), list(seeds), trainings[0], p, fold)


def _same_samples(one: Predictions, other: Predictions) -> bool:
    return np.array_equal(one.id, other.id) and np.array_equal(one.y, other.y)


def _check_aligned(one: Model, other: Model) -> None:
    if not _same_samples(one.predictions, other.predictions):
        first, second = one.entries[0].run.path, other.entries[0].run.path
        raise UserError(f"{first} and {second} were tested on different samples; judge them again")


def _left_out(key: ModelKey, cells: Cells, block: Block) -> list[str]:
    rest = [(c, e) for c, e in sorted(cells.items()) if c.fold not in block.folds or c.seed not in block.seeds]
    if not rest:
        return []
    names = ", ".join(f"{e.name} (fold {c.fold}, seed {c.seed})" for c, e in rest[:4])
    more = f" and {len(rest) - 4} more" if len(rest) > 4 else ""
    folds, seeds = (", ".join(map(str, numbers)) for numbers in block)
    kept = f"its figures are of fold {folds} with seed {seeds}"
    return [f"{key.name}: like is compared with like, so {kept}; left out: {names}{more}"]
