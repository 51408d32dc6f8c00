"""The grammar of the demo: an invented shop with product titles, queries and reviews.

Each task has one function that draws a row from a ``random.Random``. All word lists are tuples, so that a row depends
only on the seed. Brands are invented.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

Row = dict[str, Any]


def words(text: str) -> tuple[str, ...]:
    """Split a text at its spaces."""
    return tuple(text.split())


# category -> two groups of (name, other name). Kinds in one group substitute each other, the two groups of a category
# complement each other, and different categories have nothing to do with each other.
CATALOG: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {
    "kitchen": (
        (("kettle", "water boiler"), ("teapot", "tea pot"), ("coffee maker", "coffee machine")),
        (("mug", "coffee cup"), ("tumbler", "vacuum cup"), ("goblet", "wine cup")),
    ),
    "furniture": (
        (("desk", "writing table"), ("table", "dining table"), ("workbench", "work table")),
        (("chair", "seat"), ("stool", "bar stool"), ("bench", "hallway bench")),
    ),
    "bedding": (
        (("pillow", "head pillow"), ("cushion", "seat pad"), ("bolster", "neck roll")),
        (("blanket", "throw"), ("quilt", "bedspread"), ("duvet", "comforter")),
    ),
    "camping": (
        (("tent", "dome shelter"), ("tarp", "rain fly"), ("canopy", "pavilion")),
        (("sleeping bag", "mummy bag"), ("camping mat", "sleeping pad"), ("hammock", "hanging bed")),
    ),
    "footwear": (
        (("sneakers", "trainers"), ("boots", "hikers"), ("loafers", "slip ons")),
        (("socks", "crew socks"), ("insoles", "footbeds"), ("laces", "shoestrings")),
    ),
    "computing": (
        (("laptop", "notebook"), ("tablet", "slate pc"), ("monitor", "display")),
        (("keyboard", "keypad"), ("mouse", "trackball"), ("webcam", "pc camera")),
    ),
    "tools": (
        (("drill", "power drill"), ("screwdriver", "driver"), ("wrench", "spanner")),
        (("toolbox", "tool chest"), ("tool belt", "tool pouch"), ("gloves", "work gloves")),
    ),
    "lighting": (
        (("lamp", "table light"), ("lantern", "hand light"), ("chandelier", "ceiling light")),
        (("bulb", "led bulb"), ("dimmer", "light switch"), ("lampshade", "shade")),
    ),
}

# Amber, Slate and Copper are brands as well as a color or a material: only the place in the title tells them apart.
BRANDS = words(
    "Norvik Velmora Tarkin Ostrel Quenby Halvard Brightline Pomello Zentra Kivik Dunmore Lunaro Calder Fennick Arbolo "
    "Sorrento Maplen Tovaro Wexley Ibarra Amber Slate Copper"
)
COLORS: tuple[tuple[str, str], ...] = (
    ("black", "blk"), ("white", "wht"), ("dark blue", "navy"), ("red", "rd"), ("green", "grn"), ("light grey", "gry"),
    ("brown", "brn"), ("amber", "amb"), ("slate", "slt"), ("olive green", "olive"), ("pink", "pnk"), ("yellow", "yel"),
)  # fmt: skip
MATERIALS: tuple[tuple[str, str], ...] = (
    ("stainless steel", "inox"), ("cotton", "cot"), ("leather", "lthr"), ("solid oak", "oak"), ("nylon", "nyl"),
    ("copper", "cu"), ("merino wool", "wool"), ("bamboo", "bmb"),
    ("recycled plastic", "plastic"), ("glass fiber", "gf"),
)  # fmt: skip
UNITS = {
    "kitchen": "ml", "furniture": "cm", "bedding": "cm", "camping": "person", "footwear": "eu", "computing": "inch",
    "tools": "mm", "lighting": "watt",
}  # fmt: skip
AMOUNTS = {
    "ml": (250, 300, 350, 500, 750), "cm": (40, 60, 80, 120, 160), "person": (1, 2, 3, 4, 6),
    "eu": (38, 40, 41, 42, 44), "inch": (10, 13, 15, 24, 27), "mm": (6, 8, 10, 13, 19), "watt": (5, 9, 15, 40, 60),
}  # fmt: skip
RELATIONS = ("exact", "substitute", "complement", "irrelevant")
FILLERS = words("new premium classic original compact modern everyday lightweight durable handmade")
EXTRAS = ("gift box", "free returns", "two year warranty", "pack of two", "limited edition", "best seller", "with bag")

ASPECTS = words(
    "handle color finish size weight shape material lid surface stitching fit price packaging delivery service design "
    "smell noise quality manual"
)
# What a clause adds to the three stars in the middle.
SENTIMENTS: dict[int, tuple[str, ...]] = {
    2: words("excellent superb perfect fantastic wonderful brilliant flawless outstanding"),
    1: words("good nice pleasant solid decent useful pretty comfortable sturdy neat"),
    -1: words("weak cheap dull clumsy flimsy noisy rough annoying poor uneven"),
    -2: words("terrible awful horrible useless broken dreadful disgusting worthless"),
}
NEUTRAL = (
    "I bought it for my sister.", "It came on a Tuesday.", "We have used it for a month.", "My second order here.",
    "It stands in the hallway now.", "I compared a few brands first.", "The old one was ten years old.",
)  # fmt: skip

Tokens = list[tuple[str, str]]


@dataclass(frozen=True)
class Product:
    """A product of the shop; colors and materials are pairs (in full, abbreviated)."""

    category: str
    group: int
    kind: tuple[str, str]
    brand: str
    color: tuple[str, str]
    material: tuple[str, str]
    amount: int


def draw_product(rng: Random, category: str | None = None, group: int | None = None) -> Product:
    """Draw a product, of a given category and group if they are not None."""
    category = category or rng.choice(tuple(CATALOG))
    group = rng.randrange(2) if group is None else group
    return Product(
        category=category,
        group=group,
        kind=rng.choice(CATALOG[category][group]),
        brand=rng.choice(BRANDS),
        color=rng.choice(COLORS),
        material=rng.choice(MATERIALS),
        amount=rng.choice(AMOUNTS[UNITS[category]]),
    )


def change(rng: Random, product: Product, field: str) -> Product:
    """Return the product with another value of one field; another kind is from the same group."""
    values: tuple[Any, ...] = {
        "kind": CATALOG[product.category][product.group],
        "brand": BRANDS,
        "color": COLORS,
        "material": MATERIALS,
        "amount": AMOUNTS[UNITS[product.category]],
    }[field]
    old = getattr(product, field)
    return replace(product, **{field: rng.choice([value for value in values if value != old])})


def tagged(text: str, tag: str) -> Tokens:
    """Split a text into words and tag them with BIO; with the tag ``O``, all words are outside."""
    return [
        (word, "O" if tag == "O" else f"{'B' if position == 0 else 'I'}-{tag}")
        for position, word in enumerate(words(text))
    ]


def title(rng: Random, product: Product, short: bool = False, optional: float = 0.7) -> Tokens:
    """Return a title as (word, tag) pairs; ``short`` abbreviates, ``optional`` is the probability of each attribute."""
    form = int(short)
    unit = UNITS[product.category] if short else f" {UNITS[product.category]}"
    brand = tagged(product.brand, "brand")
    kind = tagged(product.kind[form], "O")
    color = tagged(product.color[form], "color") if rng.random() < optional else []
    material = tagged(product.material[form], "material") if rng.random() < optional else []
    amount = tagged(f"{product.amount}{unit}", "size") if rng.random() < optional else []
    filler = tagged(rng.choice(FILLERS), "O") if rng.random() < 0.3 else []
    orders = (
        brand + filler + color + material + kind + amount,
        brand + filler + kind + amount + material + color,
        filler + material + kind + color + amount + tagged("by", "O") + brand,
        kind + tagged("from", "O") + brand + amount + color + material,
    )
    return rng.choice(orders)


def text_of(tokens: Tokens) -> str:
    """Join the words of tagged tokens."""
    return " ".join(word for word, _ in tokens)


def category_row(rng: Random, noisy: bool) -> Row:
    """Draw a title with the category of the product that is sold, not of the one that it goes with."""
    product = draw_product(rng)
    text = text_of(title(rng, product))
    if rng.random() < 0.4:
        text += f" {rng.choice(('for your', 'fits', 'goes with'))} {rng.choice(draw_product(rng).kind)}"
    if rng.random() < 0.3:
        text += f" - {rng.choice(EXTRAS)}"
    return {"title": text, "label": rng.choice(tuple(CATALOG)) if noisy else product.category}


def attributes_row(rng: Random, noisy: bool) -> Row:
    """Draw a title with tags for brand, color, material and size; a noisy row lacks one of its spans."""
    tokens = title(rng, draw_product(rng))
    if rng.random() < 0.4:
        tokens += tagged(rng.choice(EXTRAS), "O")
    if noisy:
        lost = rng.choice([tag[2:] for _, tag in tokens if tag.startswith("B-")])
        tokens = [(word, "O" if tag[2:] == lost else tag) for word, tag in tokens]
    return {"tokens": [word for word, _ in tokens], "tags": [tag for _, tag in tokens]}


def relevance_row(rng: Random, noisy: bool) -> Row:
    """Draw a search query and a title; the label is the relation of the two products."""
    wanted = draw_product(rng)
    query = [wanted.kind[int(rng.random() < 0.25)]]
    fields = rng.sample(("brand", "color", "material"), rng.randint(0, 2))
    for field in fields:
        value = getattr(wanted, field)
        query.insert(0, value if field == "brand" else value[0])
    label = rng.choice(RELATIONS)
    if label == "exact":
        kept = {field: getattr(wanted, field) for field in fields}
        shown = replace(draw_product(rng, wanted.category, wanted.group), kind=wanted.kind, **kept)
    elif label == "substitute":
        shown = change(rng, draw_product(rng, wanted.category, wanted.group), "brand")
        shown = change(rng, replace(shown, kind=wanted.kind), "kind")
    elif label == "complement":
        shown = draw_product(rng, wanted.category, 1 - wanted.group)
    else:
        shown = draw_product(rng, rng.choice([name for name in CATALOG if name != wanted.category]))
    if noisy:
        label = rng.choice(RELATIONS)
    return {"query": " ".join(query).lower(), "title": text_of(title(rng, shown)), "label": label}


def match_row(rng: Random, noisy: bool) -> Row:
    """Draw two offers: of one product in other words and another order (1), or of two similar products (0)."""
    left = right = draw_product(rng)
    label = rng.randrange(2)
    if label == 0:
        for field in rng.sample(("kind", "brand", "color", "material"), rng.randint(2, 4)):
            right = change(rng, right, field)
    left_text = text_of(title(rng, left, optional=1.0))
    right_text = text_of(title(rng, right, short=rng.random() < 0.5, optional=1.0))
    return {"left": left_text, "right": right_text, "label": rng.randrange(2) if noisy else label}


def rating_row(rng: Random, noisy: bool) -> Row:
    """Draw a review of a few clauses; the stars are three plus the mean score of the clauses."""
    scores: list[float] = []
    sentences: list[str] = []
    mood = rng.choice((-1, -1, 1, 1, 0))
    for _ in range(rng.randint(1, 3)):
        strength = rng.choice((1, 2)) * (mood or rng.choice((-1, 1)))
        score, how = float(strength), rng.choice(SENTIMENTS[strength])
        twist = rng.random()
        if twist < 0.25:
            score, how = -strength / 2, f"not {how}"
        elif twist < 0.45:
            score, how = strength * 1.5, f"{rng.choice(('very', 'really', 'extremely'))} {how}"
        elif twist < 0.6:
            score, how = strength / 2, f"{rng.choice(('slightly', 'somewhat', 'a bit'))} {how}"
        scores.append(score)
        sentences.append(f"The {rng.choice(ASPECTS)} is {how}.")
    if rng.random() < 0.5:
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(NEUTRAL))
    stars = min(5, max(1, round(3 + sum(scores) / len(scores))))
    return {"review": " ".join(sentences), "stars": rng.randint(1, 5) if noisy else stars}


@dataclass(frozen=True)
class TaskGrammar:
    """How to draw the rows of a task, and the share of its training labels that is random."""

    draw: Callable[[Random, bool], Row]
    label: str
    train_rows: int
    noise: float

    def splits(self, seed: str, held_out_rows: int) -> dict[str, list[Row]]:
        """Draw ``train``, ``validation`` and ``test``, where only ``train`` has noisy labels.

        No input occurs twice, also when case is ignored.
        """
        rng = Random(seed)
        seen: set[tuple[str, ...]] = set()
        splits: dict[str, list[Row]] = {}
        for split, rows in (("train", self.train_rows), ("validation", held_out_rows), ("test", held_out_rows)):
            splits[split] = []
            while len(splits[split]) < rows:
                row = self.draw(rng, split == "train" and rng.random() < self.noise)
                key = self.key(row)
                if key not in seen:
                    seen.add(key)
                    splits[split].append(row)
        return splits

    def texts(self, row: Row) -> list[str]:
        """Return the inputs of a row; a list of words is joined."""
        inputs = (value for name, value in row.items() if name != self.label)
        return [" ".join(value) if isinstance(value, list) else value for value in inputs]

    def key(self, row: Row) -> tuple[str, ...]:
        """Return the inputs of a row without case, punctuation and, for a pair, order."""
        return tuple(sorted(" ".join(re.findall(r"\w+", text.lower())) for text in self.texts(row)))


TASKS: dict[str, TaskGrammar] = {
    "relevance": TaskGrammar(relevance_row, label="label", train_rows=3000, noise=0.0),
    "category": TaskGrammar(category_row, label="label", train_rows=300, noise=0.3),
    "match": TaskGrammar(match_row, label="label", train_rows=3000, noise=0.0),
    "rating": TaskGrammar(rating_row, label="stars", train_rows=400, noise=0.3),
    "attributes": TaskGrammar(attributes_row, label="tags", train_rows=200, noise=0.3),
}
