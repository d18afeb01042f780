"""Scene graphs: parsed, printed, asked about and compared, by hand-made cases and random ones."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srrl.errors import UserError
from srrl.rig.graphs import (
    INVERSES,
    PREDICATES,
    Entity,
    Relation,
    SceneGraph,
    f1,
    iou,
    load_rows,
    parse_graph,
    similarities,
)
from srrl.shapes.scenes import all_scenes
from tests.texts import texts

ONCE = settings(max_examples=200, deadline=None, derandomize=True, database=None)
NOUNS = ("tower", "bridge", "cat", "Dog", "table", "umbrella", "lamp", "étagère", "box-kite", "x2")
ADJECTIVES = ("red", "stone", "tall", "old", "arched", "Blue", "very", "half-open")
things = st.builds(
    Entity,
    st.sampled_from(NOUNS),
    st.lists(st.sampled_from(ADJECTIVES), max_size=3, unique=True).map(tuple),
)
relations = st.builds(Relation, things, st.sampled_from(PREDICATES), things)
graphs = st.builds(
    SceneGraph,
    st.lists(relations, min_size=1, max_size=5).map(tuple),
    st.lists(things, max_size=3).map(tuple),
)


def graph(text: str) -> SceneGraph:
    return parse_graph(text)


def test_the_papers_prompt():
    g = graph("stone tall tower attached to stone arched bridge; man riding brown horse; a cloud")
    tower, bridge = Entity("tower", ("stone", "tall")), Entity("bridge", ("stone", "arched"))
    assert g.relations[0] == Relation(tower, "attached to", bridge)
    assert [str(e) for e in g.entities[2:]] == ["man", "brown horse", "cloud"]
    assert g.alone == (Entity("cloud"),)
    assert [r.question for r in g.requirements()] == [
        "is there a stone tall tower?",
        "is there a stone arched bridge?",
        "is there a man?",
        "is there a brown horse?",
        "is there a cloud?",
        "is the stone tall tower attached to the stone arched bridge?",
        "is the man riding the brown horse?",
    ]


@pytest.mark.parametrize(
    ("text", "subject", "predicate", "thing"),
    [
        ("a man standing in front of a house", "man", "standing in front of", "house"),
        ("an old man standing next to the dog.", "old man", "standing next to", "dog"),
        ("box of tools on table", "box of tools", "on", "table"),
        ("Boy RUNNING ON beach", "Boy", "running on", "beach"),
        ("the cat  to the left of  an umbrella", "cat", "to the left of", "umbrella"),
        ("onion on ontology", "onion", "on", "ontology"),
        ("woman has hat", "woman", "has", "hat"),
    ],
)
def test_phrases_come_apart_at_their_relation(text, subject, predicate, thing):
    (relation,) = graph(text).relations
    assert (str(relation.subject), relation.predicate, str(relation.object)) == (
        subject,
        predicate,
        thing,
    )


def test_every_prompt_of_the_shapes_world_is_a_graph():
    for scene in all_scenes():
        g = graph(scene.prompt)
        (relation,) = g.relations
        assert str(relation.subject) == " ".join(scene.first)
        assert (relation.predicate, str(relation.object)) == (
            scene.relation,
            " ".join(scene.second),
        )
        assert [r.kind for r in g.requirements()] == ["entity", "entity", "relation"]


@pytest.mark.parametrize(
    "text", ["", " ; ;", "on a table", "a cat on", "the on the", "a", "on", "."]
)
def test_malformed_text_is_an_error_that_names_it(text):
    with pytest.raises(ValueError, match=r"names nothing|lacks one side|relation"):
        parse_graph(text)


@ONCE
@given(graphs)
def test_what_is_printed_reads_back(g):
    again = parse_graph(str(g))
    assert again.triples == g.triples and set(again.entities) == set(g.entities)
    assert str(again) == str(g)
    assert similarities(again, g) == dict.fromkeys(
        ("sg_iou", "entity_iou", "relation_iou", "f1"), 1
    )


@ONCE
@given(texts(max_size=60))
def test_any_text_is_a_graph_or_a_value_error(text):
    try:
        g = parse_graph(text)
    except ValueError:
        return
    assert g.entities and all(str(e).strip() for e in g.entities)
    for requirement in g.requirements():
        assert requirement.question.endswith("?")


@ONCE
@given(graphs)
def test_a_requirement_is_asked_once_whatever_is_repeated(g):
    doubled = SceneGraph(g.relations * 2, g.alone * 2)
    assert doubled.requirements() == g.requirements()
    kinds = [r.kind for r in g.requirements()]
    assert kinds.count("entity") == len(g.entities) and kinds.count("relation") == len(g.triples)


@ONCE
@given(graphs, graphs)
def test_similarities_are_symmetric_between_0_and_1_and_f1_is_not_below_iou(one, other):
    forth, back = similarities(one, other), similarities(other, one)
    assert forth == back
    assert all(0 <= value <= 1 for value in forth.values())
    assert forth["f1"] >= forth["sg_iou"]
    assert (forth["sg_iou"] == 1) == (one.triples == other.triples)


def test_similarities_by_hand():
    truth = graph("red cat on mat; dog near cat")
    found = graph("red cat on mat; dog near red cat")
    # triples: (red cat, on, mat) of 3; entities {red cat, mat, dog, cat} and {red cat, mat, dog}
    assert similarities(found, truth) == {
        "sg_iou": pytest.approx(1 / 3),
        "entity_iou": pytest.approx(3 / 4),
        "relation_iou": 1.0,
        "f1": pytest.approx(1 / 2),
    }
    assert iou([], []) == f1([], []) == 1 and iou([1], []) == f1([], [1]) == 0


def test_two_ways_of_saying_one_thing_are_one_triple():
    for said, other in INVERSES.items():
        assert graph(f"cat {said} dog").triples == graph(f"dog {other} cat").triples
    assert graph("cat to the left of dog").triples == graph("cat left of dog").triples
    assert graph("cat on dog").triples != graph("dog on cat").triples


def test_entities_are_their_words_in_any_case_and_the_last_is_what_they_are():
    assert Entity("light", ("red", "traffic")) == Entity("Traffic Light", ("Red",))
    assert Entity("house", ("boat",)) != Entity("boat", ("house",))


ROW = {
    "items": [
        {"item_id": 0, "label": "tower", "attributes": ["stone", "tall"]},
        {"item_id": 7, "label": "bridge", "attributes": []},
        {"item_id": 3, "label": "cloud"},
    ],
    "relations": [{"triple_id": 0, "item1": 0, "relation": "attached to", "item2": 7}],
}


@pytest.mark.parametrize("name", ["rows.json", "rows.JSONL"])
def test_laion_sgs_rows_are_graphs(name, tmp_path):
    lines = "\n".join(json.dumps(ROW) for _ in range(2))
    text = lines if name.endswith("L") else json.dumps([ROW, ROW])
    (tmp_path / name).write_text(text)
    graphs = load_rows(tmp_path / name)
    assert [str(g) for g in graphs] == ["stone tall tower attached to bridge; cloud"] * 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("[", "cannot be read as JSON"),
        ("{}", "expected a list of LAION-SG's rows"),
        ("[]", "expected a list of LAION-SG's rows"),
        (json.dumps([ROW, 3]), "row 2: no row of LAION-SG"),
        (
            json.dumps([ROW | {"relations": [{"item1": 0, "relation": "on", "item2": 9}]}]),
            "row 1: .*9",
        ),
        (json.dumps([{"items": [], "relations": []}]), "row 1: .*no items"),
        (
            json.dumps([{"items": [{"item_id": 0, "label": " "}], "relations": []}]),
            "without a label",
        ),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(rows, said, tmp_path):
    (tmp_path / "rows.json").write_text(rows)
    with pytest.raises(UserError, match=f"rows.json.*{said}"):
        load_rows(tmp_path / "rows.json")
