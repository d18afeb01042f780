"""Scene graphs: parsed and printed, asked about question by question, and compared.

A prompt is relation phrases joined by "; ", as in "stone tall tower attached to stone arched
bridge" (RL-RIG, arXiv 2602.19974); a phrase without a relation is an entity by itself. The grammar
of the shapes world is of this form. Similarities are those of LAION-SG (arXiv 2412.08580).
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from srrl.errors import UserError

DESCRIBE = "describe the picture."  # how the embedded VLM is taught and asked to write one
# What is recognised between two entities; what is done there may come first, as in "standing on".
PREDICATES = (
    "left of",
    "right of",
    "to the left of",
    "to the right of",
    "above",
    "below",
    "on",
    "on top of",
    "under",
    "beneath",
    "over",
    "in",
    "inside",
    "outside",
    "within",
    "by",
    "near",
    "next to",
    "beside",
    "around",
    "against",
    "along",
    "across",
    "across from",
    "behind",
    "in front of",
    "facing",
    "opposite",
    "surrounding",
    "surrounded by",
    "covering",
    "covered by",
    "covered with",
    "filled with",
    "full of",
    "with",
    "without",
    "part of",
    "toward",
    "towards",
    "into",
    "through",
    "attached to",
    "connected to",
    "tied to",
    "mounted on",
    "hanging from",
    "hanging on",
    "leaning on",
    "leaning against",
    "lying on",
    "lying in",
    "sitting on",
    "sitting in",
    "sitting at",
    "standing on",
    "standing in",
    "standing next to",
    "standing behind",
    "walking on",
    "walking in",
    "running on",
    "flying over",
    "flying in",
    "floating on",
    "floating in",
    "growing on",
    "growing in",
    "parked on",
    "riding",
    "driving",
    "wearing",
    "holding",
    "carrying",
    "using",
    "eating",
    "drinking",
    "playing",
    "playing with",
    "pulling",
    "pushing",
    "touching",
    "looking at",
    "watching",
    "reading",
    "feeding",
    "chasing",
    "following",
    "crossing",
    "entering",
    "leaving",
    "supporting",
    "containing",
    "has",
    "have",
)
# Two ways of saying one thing: the first stands in triples, with subject and object changed.
INVERSES = {
    "right of": "left of",
    "to the right of": "left of",
    "below": "above",
    "beneath": "above",
    "under": "above",
}
SAME = {"to the left of": "left of"}
ARTICLE = re.compile(r"^(?:an?|the)(?:\s+|$)", re.IGNORECASE)
VERBS = ("has", "have")  # of predicates, those which a question asks for with "does"


@dataclass(frozen=True)
class Entity:
    """A thing and what is said of it: "stone tall tower" is a tower, stone and tall.

    Equal are those of the same words, the others in any order before the last, whatever their case.
    """

    label: str = field(compare=False)
    attributes: tuple[str, ...] = field(default=(), compare=False)
    key: tuple[str, frozenset[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        *others, last = " ".join((*self.attributes, self.label)).lower().split() or [""]
        object.__setattr__(self, "key", (last, frozenset(others)))

    def __str__(self) -> str:
        return " ".join((*self.attributes, self.label))


@dataclass(frozen=True)
class Relation:
    subject: Entity
    predicate: str
    object: Entity

    def __str__(self) -> str:
        return f"{self.subject} {self.predicate} {self.object}"

    @property
    def triple(self) -> tuple[Entity, str, Entity]:
        """Equal for two ways of saying the same, as "a above b" and "b below a"."""
        said = self.predicate.lower()
        if said in INVERSES:
            return self.object, INVERSES[said], self.subject
        return self.subject, SAME.get(said, said), self.object


@dataclass(frozen=True)
class Requirement:
    """What a picture must show, an entity or a relation, as a question that is answered by yes."""

    wanted: "Entity | Relation"
    question: str

    @property
    def kind(self) -> str:
        return type(self.wanted).__name__.lower()

    @property
    def text(self) -> str:
        return str(self.wanted)


@dataclass(frozen=True)
class SceneGraph:
    """relations, and the entities in the order they are first named, with those of no relation."""

    relations: tuple[Relation, ...] = ()
    alone: tuple[Entity, ...] = ()

    @property
    def entities(self) -> tuple[Entity, ...]:
        named = [e for r in self.relations for e in (r.subject, r.object)]
        return tuple(dict.fromkeys([*named, *self.alone]))

    @property
    def triples(self) -> frozenset[tuple[Entity, str, Entity]]:
        return frozenset(relation.triple for relation in self.relations)

    def __str__(self) -> str:
        """The prompt, which `parse_graph` reads back."""
        return "; ".join(map(str, (*self.relations, *self.alone)))

    def requirements(self) -> list[Requirement]:
        """A question for each entity and each relation, in the graph's order, each once."""
        things = [Requirement(e, f"is there {a(e)}?") for e in self.entities]
        unique = {relation.triple: relation for relation in reversed(self.relations)}
        relations = [unique[t] for t in dict.fromkeys(r.triple for r in self.relations)]
        return things + [Requirement(r, asked(r)) for r in relations]


def a(entity: Entity) -> str:
    text = str(entity)
    return f"{'an' if text[0].lower() in 'aeiou' else 'a'} {text}"


def asked(relation: Relation) -> str:
    """ "is the stone tower attached to the stone bridge?" """
    subject, predicate, thing = relation.subject, relation.predicate, relation.object
    if predicate in VERBS:
        return f"does the {subject} have the {thing}?"
    return f"is the {subject} {predicate} the {thing}?"


def parse_graph(text: str, predicates: Iterable[str] = PREDICATES) -> SceneGraph:
    """The scene graph of a prompt. Raises ValueError, which names the phrase, for one that is empty
    or of which a side of a relation is."""
    known = "|".join(map(re.escape, sorted(predicates, key=len, reverse=True)))
    pattern = re.compile(rf"\b(?:\w+ing\s+)?(?:{known})\b", re.IGNORECASE)
    relations, alone = [], []
    phrases = [phrase.strip() for phrase in re.split(r"[;\n]", text)]
    for phrase in filter(None, phrases):
        # The longest in words, of several the first: "in front of", not the "in" of it.
        found = max(pattern.finditer(phrase), key=lambda m: len(m[0].split()), default=None)
        if found:
            before, after = phrase[: found.start()], phrase[found.end() :]
            predicate = " ".join(found[0].lower().split())
            relations.append(Relation(entity(before, phrase), predicate, entity(after, phrase)))
        else:
            alone.append(entity(phrase, phrase))
    if not relations and not alone:
        raise ValueError(f"{text!r} names nothing: expected phrases as 'a cat on a mat', with ';'")
    return SceneGraph(tuple(relations), tuple(alone))


def entity(text: str, phrase: str) -> Entity:
    """An entity's words: the last is what it is, those before it are its attributes."""
    words = ARTICLE.sub("", text.strip(" .,")).split()
    if not words:
        raise ValueError(f"{phrase!r} lacks one side of its relation")
    return Entity(words[-1], tuple(words[:-1]))


# ------------------------------------------------------------------------------- comparing


def iou(found: Iterable, truth: Iterable) -> float:
    """|A n B| / |A u B| of unique members; 1 where both are empty."""
    found, truth = set(found), set(truth)
    return len(found & truth) / len(found | truth) if found | truth else 1.0


def f1(found: Iterable, truth: Iterable) -> float:
    """2 |A n B| / (|A| + |B|) of unique members; 1 where both are empty."""
    found, truth = set(found), set(truth)
    return 2 * len(found & truth) / (len(found) + len(truth)) if found or truth else 1.0


def similarities(found: SceneGraph, truth: SceneGraph) -> dict[str, float]:
    """SG-IoU over triples, Entity-IoU, Relation-IoU over predicates (LAION-SG), and triples' F1."""
    predicates = [{t[1] for t in graph.triples} for graph in (found, truth)]
    return {
        "sg_iou": iou(found.triples, truth.triples),
        "entity_iou": iou(found.entities, truth.entities),
        "relation_iou": iou(*predicates),
        "f1": f1(found.triples, truth.triples),
    }


# ------------------------------------------------------------------------------- LAION-SG


def of_row(row: Mapping[str, Any]) -> SceneGraph:
    """The graph of one of LAION-SG's rows: items (item_id, label, attributes) and relations (item1,
    relation, item2, by item_id). Raises ValueError for a row of another form."""
    try:
        items = {item["item_id"]: item_entity(item) for item in row["items"]}
        relations = tuple(
            Relation(items[r["item1"]], " ".join(r["relation"].split()), items[r["item2"]])
            for r in row["relations"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no row of LAION-SG: {type(error).__name__}: {error}") from None
    if not items or any(not r.predicate for r in relations):
        raise ValueError("no row of LAION-SG: it has no items, or a relation without a name")
    related = {e for r in relations for e in (r.subject, r.object)}
    return SceneGraph(
        relations, tuple(dict.fromkeys(e for e in items.values() if e not in related))
    )


def item_entity(item: Mapping[str, Any]) -> Entity:
    attributes = item.get("attributes", ())
    if not isinstance(attributes, list | tuple):
        raise ValueError(f"no row of LAION-SG: attributes {attributes!r} are no list")
    words = [" ".join(w.split()) for w in (*attributes, item["label"])]
    if not words[-1]:
        raise ValueError("no row of LAION-SG: an item without a label")
    return Entity(words[-1], tuple(filter(None, words[:-1])))


def load_rows(path: str | Path) -> list[SceneGraph]:
    """The graphs of a JSON list of LAION-SG's rows, or of one such row a line (.jsonl). Raises
    UserError naming the file and the row."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        lines = Path(path).suffix.lower() == ".jsonl"
        rows = [json.loads(t) for t in text.split("\n") if t.strip()] if lines else json.loads(text)
    except (OSError, ValueError) as error:
        raise UserError(f"scene graphs {str(path)!r} cannot be read as JSON: {error}") from None
    if not isinstance(rows, list) or not rows:
        raise UserError(f"scene graphs {str(path)!r}: expected a list of LAION-SG's rows")
    graphs = []
    for number, row in enumerate(rows, 1):
        try:
            graphs.append(of_row(row))
        except ValueError as error:
            raise UserError(f"scene graphs {str(path)!r}, row {number}: {error}") from None
    return graphs
