"""Our guidelines in English: a text and phrases per dimension, a caption per example. Markdown without raw HTML.

Not here: which examples there are and what stands when (guidelines.py); the same in Chinese (guidelines_zh_hans.py).
"""

from trainer.contract.dimensions import Dimension

TEXTS: dict[Dimension, str] = {
    Dimension.APPEARANCE_DEFORMATION: """\
Is the product in the candidate still **the product of the original**? Compare part by part; most of these flaws cannot
be seen in the candidate alone.

**Look at**

1. the outline: straight edges straight, round ones round, both sides alike where they were alike;
2. the parts: lid, handle, straw, feet, seams – count them in both images;
3. colours and materials: body, trim, label; matt stays matt, glass stays glass;
4. label, logo and lettering, at 1:1: same shapes, same order, readable where the original is readable.

**Flawed**

- the outline is bent, bulged, melted or wavy;
- a part is missing, added, doubled, or sits elsewhere;
- the label or logo is garbled, mirrored, reshaped, or a colour has become another colour;
- the proportions differ: stretched, squeezed, another neck or foot.

**Not flawed**

- the whole product is larger, smaller or brighter, or tinted by the light of its new scene;
- reflections and shading differ, because the surroundings do;
- small print is soft in both images.

**Borderline**

- *Lettering too small to read in the original* needs only the same rhythm of strokes.
- *A turned product* is fine if the original's shape allows the view, and flawed if a side had to be invented.
- *A difference you find only at four times its size* does not count.
- Cut off by the frame, or tilted: that is placement. Judge what is visible.

**Wording.** Name the part, then what the original has, then what the candidate has: “The handle on the right is
missing in B; the mark on the label is blue in the original and red in C.” For a fine candidate name what you checked.
""",
    Dimension.PHYSICAL_SHADOW: """\
Does the shadow **belong to this product, in this light**? First find the light: a window, a lamp, the sun, the bright
side of the product, the shadows of other things. Then follow the shadow from the foot to its tip.

**Look at**

1. contact: darkness right where the product touches the ground, without a gap;
2. direction: away from the light, and the same as for everything else in the scene;
3. length: a high light throws a short shadow, a low one a long one;
4. darkness and edge: soft and pale in diffuse light, dark and sharp in the sun, softer towards the tip;
5. number: one shadow per strong light.

**Flawed**

- there is no shadow although other things cast one, or the product looks pasted on;
- the shadow falls towards the light, or across the others;
- it lies apart from the product, or begins beside the foot;
- it is far too long, black and hard in soft light, or of another shape than the product;
- there are two shadows and one light.

**Not flawed**

- a faint, short shadow in an evenly lit room;
- two shadows where two lights can be seen;
- a reflection on a glossy ground, besides the shadow.

**Borderline**

- *No light to be seen*: any plausible direction is fine as long as product and shadow agree.
- *Only the dark line of contact*: fine under an overcast sky or in a light tent, flawed in sunshine.
- *A floating product with a shadow below it* is a placement flaw. Here ask only whether the shadow could be its own.

**Wording.** Say where the light is, then what the shadow does: “The sun is at the upper right, the shadow of B falls
to the right, towards it.”
""",
    Dimension.PLACEMENT_LAYOUT: """\
Could somebody have **put the product down like this**? Judge where it is, how it stands and how large it is; not what
it looks like and not its shadow.

**Look at**

1. support: the foot is on a surface that can carry it, and nothing goes through anything;
2. attitude: upright as in the original, on the same ground plane as the rest of the scene;
3. scale: against things of known size – a chair, a plate, a door, grass;
4. wholeness: the product is inside the frame, and nothing covers what matters;
5. perspective: seen from the same height as the scene.

**Flawed**

- it floats, or hangs over the edge of a table;
- it leans although nothing holds it, or lies where it should stand;
- it is sunk into the ground or cuts through another thing;
- it is as large as the furniture, or a toy beside a cup;
- it is cut off by the frame, or covered so that it cannot be recognised;
- one looks down at the scene and straight at the product.

**Not flawed**

- it stands off centre, further back, or smaller than you would have put it;
- it stands on an unusual but solid thing: a stone, a book, a step;
- something overlaps a small part of it as it would in a photograph.

**Borderline**

- *A few pixels of a gap below the foot*: use 1:1; if the shadow touches the foot it stands.
- *Only a straw or a strap is cut by the frame* is fine, the body or the label is not.
- *Size without anything to compare*: fine.

**Wording.** Name the place and the relation: “The jar in C floats a hand’s breadth above the grass.” “The mug in A is
as high as the window.”
""",
    Dimension.EXTENSION_RATIONALITY: """\
Is the background that was added **one continuous, believable place**? Look past the product: at the edges, the corners
and the area around it, most of all where the original ended.

**Look at**

1. lines that cross the picture: horizon, table edge, skirting, tiles – do they go on behind the product and to the
   frame?
2. joints: a straight vertical or horizontal change of brightness, colour, grain or sharpness;
3. repeats: the same cloud, plank or leaf twice, at one distance;
4. things that are no things: half objects, a ghost of the product, letters without meaning, melted furniture;
5. holes: grey, white or chequered spots, smeared areas.

**Flawed**

- the horizon or an edge breaks, jumps or changes its slope;
- a seam is visible at normal size;
- a strip is tiled or mirrored;
- a second product, or part of one, grows out of the background;
- a region was left unfilled or is only a smear;
- inside and outside are mixed without a window or a door.

**Not flawed**

- an empty, plain or blurred background that goes on evenly;
- patterns that repeat in reality: tiles, bricks, planks, fences;
- a thing that is cut by the edge of the frame.

**Borderline**

- *A seam that shows only when enlarged or in the difference view* does not count.
- *An odd but possible thing* (a lamp without a cable) is fine; an impossible one (a table leg that ends in the air) is
  flawed.
- *A boring background* is fine: taste is not judged.

**Wording.** Say where, then what breaks: “Left third of D: the horizon jumps up at a vertical seam.” For a fine
candidate: “Wall and floor run on evenly to all edges.”
""",
}

PHRASES: dict[Dimension, tuple[str, ...]] = {
    Dimension.APPEARANCE_DEFORMATION: (
        "Outline, parts, colours and label are as in the original.",
        "The outline is bent.",
        "The body bulges on one side.",
        "The label is garbled.",
        "The mark has another colour than in the original.",
        "The mark has another shape than in the original.",
        "A part of the original is missing.",
        "There is a part that the original does not have.",
        "The proportions differ from the original.",
    ),
    Dimension.PHYSICAL_SHADOW: (
        "The shadow touches the foot and falls away from the light.",
        "There is no shadow under the product.",
        "The shadow falls towards the light.",
        "The shadow lies apart from the product.",
        "The shadow is too dark and hard for this light.",
        "The shadow is far too long.",
        "There are two shadows from one light.",
        "The shadow falls in another direction than the others.",
    ),
    Dimension.PLACEMENT_LAYOUT: (
        "The product stands upright on the ground, whole and of a believable size.",
        "The product floats above the ground.",
        "The product leans without support.",
        "The product is too large for the scene.",
        "The product is too small for the scene.",
        "The product sinks into the ground.",
        "The product is cut off by the frame.",
        "The product cuts through another thing.",
    ),
    Dimension.EXTENSION_RATIONALITY: (
        "The background runs on evenly to all edges.",
        "The horizon breaks.",
        "A seam shows in the background.",
        "A strip of the background repeats.",
        "A ghost of the product stands in the background.",
        "A spot was left unfilled.",
        "A line of the background does not continue behind the product.",
        "A thing in the background is no possible object.",
    ),
}

CAPTIONS: dict[str, str] = {
    "appearance-warped": "The outline is wavy: the bottle’s straight body bends to both sides.",
    "appearance-garbled": "The label is torn to scraps; the ring on it is gone.",
    "appearance-recoloured": "The disc is blue in the original and red here. Seen only by comparing.",
    "appearance-part": "The handle is missing. The mug alone looks right; the original has a handle.",
    "appearance-added": "An arm grows out of the box that the original does not have.",
    "appearance-fine": "Fine: another place and another light, the same bottle in every part.",
    "shadow-missing": "No shadow at all: the can looks pasted on.",
    "shadow-reversed": "The sun is at the right and so is the shadow: it should fall to the left.",
    "shadow-detached": "The shadow lies apart from the bottle’s foot.",
    "shadow-doubled": "Two shadows, one sun.",
    "shadow-long": "Far too long for the light: on the left as it should be.",
    "shadow-fine": "Fine: fainter and shorter, but it touches the foot and falls away from the lamp.",
    "placement-floating": "The jar floats above the grass; its shadow stays below.",
    "placement-tilted": "The bottle leans, and nothing holds it.",
    "placement-large": "The mug is as high as the room and touches the edge of the frame.",
    "placement-sunk": "The can is sunk into the sand: its lower half is gone.",
    "placement-cut": "The box is cut off by the edge of the frame.",
    "placement-fine": "Fine: off centre and a little smaller, but upright, whole and on the ground.",
    "extension-horizon": "Beach and sea jump at a vertical line on the left: the horizon breaks.",
    "extension-seam": "A darker strip with a straight seam at the right edge.",
    "extension-repeated": "A narrow strip repeats at the right edge.",
    "extension-ghost": "A second, half transparent jar stands at the left edge.",
    "extension-hole": "A spot at the lower right was left unfilled.",
    "extension-fine": "Fine: an invented room, plain, whose wall and floor go on evenly to all edges.",
}
