"""Rhymed lines, couplets and poems: every line ends in a word whose rhymes are known.

A line that begins with "+" names the topic, the others fit any poem. Lines of one block rhyme.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from random import Random

from dgemma_core.nano.english.grammar import Grammar, tokens_of
from dgemma_core.nano.english.lexicon import lists, rhymes_of
from dgemma_core.nano.english.stories import THEMES, words
from dgemma_core.nano.english.words import Entry, noun

LINES = """
+ I [think of|sing to|wait for] {X.the} at the end of the day
+ {X.the} [and I|and my heart] have so much to say
+ [The wind calls {X.the}|My heart calls {X.the}] from far away
+ [O, let me keep {X.the}|I wish for {X.the}] and let me stay
[the morning came|the evening came] in gold and grey
[a {+soft} song|a {+soft} dream] is on its way
the [children|swallows] laugh, the [kittens|puppies] play
and [nothing good|no happy hour] is far away
we [walked along|went down] the quiet bay
it is the first [warm|bright] day of May

+ I [saw|heard|dreamed of] {X.the} in the middle of the night
+ {X.the} [came to me|was with me] by candlelight
+ I [look at|think of] {X.the}, and the world is bright
+ [I drew|I painted] {X.the} in blue and white
the [little|old] town sleeps, and the [stars|lamps] are bright
[hold on to me|come close to me], hold on [tight|tonight]
a [{+soft}|tiny] star gives a [{+soft}|tiny] light
and [every little thing|all the world] is right
the [clouds|swallows] are gone, they are out of sight
we [sing|whisper] and [wait|dream] for the morning light

+ I [saw|found|met] {X.the} under the open sky
+ {X.the} [makes me laugh|makes me sing|makes me dream], and I know why
+ do not [ask|tell] {X.the} to say goodbye
the [swallows|wild geese] turn and the [clouds|days] go by
[my heart|my kite|my song] goes up, and up so high
there is [no tear|no cloud] in the summer sky
[we do not know|nobody asks], and we do not cry
and [all we need|all we do] is to give it a try

+ I [run to|wake up with|look for] {X.the} in the morning sun
+ with {X.the} [beside me|in my heart], the day is fun
+ [this song for|my dream of] {X.the} has just begun
the [long cold|dark long] night is over and done
[two hands, two hearts|a hundred steps], and we are one
the [rivers|children] laugh, the [rivers|children] run
the [day|year|walk] is long, but the work is done

+ I [found|saw|left] {X.the} near the old oak tree
+ {X.the} [is a gift|is a wonder|is a secret] for you and me
+ [come, look at|come, sing of] {X.the}, and you will see
+ I [dream of|long for] {X.the} by the deep blue sea
the [wind|door] is open, the wind is free
a [{+soft}|small] voice calls from the apple tree
we [drank|shared] a pot of mountain tea
and [who could be|nobody is] as glad as we

+ I [tell|whisper of] {X.the} to the silver moon
+ [come back|come near], sweet dream of {X.the}, come soon
+ {X.the} [is like|sounds like] a summer tune
it [happened|began] one [warm|bright] afternoon in June
the [swallows|bees] are humming an old, old tune
the [night|evening] is short, and the day comes soon
we [danced|walked] all night by the light of the moon

+ {X.the} [is near|was here], and yet so far
+ I [tell|sing] of {X.the} to the evening star
I [love|like] you just the way you are
the [lantern|lamp] shines like a [tiny|little] star
we [walked so long|went so far], we came so far
[no road is long|no hill is high] where the good friends are

+ I [think of|long for] {X.the} when I hear the rain
+ one day I will see {X.the} again [and again|, again]
+ [I waved to|I dreamed of] {X.the} from a [slow|long] night train
the [wind|moon] goes softly down the lane
and [summer|spring] will soon come back again
I [listen to|wake up to] the drumming rain

+ {X.the} [sleeps|waits|dreams] under the winter snow
+ [come, let us follow|come, look for] {X.the} where the rivers flow
+ there is [something|one thing] about {X.the} that I know
the [north|cold] wind came and began to blow
a [hundred|thousand] lamps are all aglow
the [rivers|hours] are wide, and the hours are slow
[hand in hand|side by side] through the fields we go
and [seeds|dreams] that you plant today will grow

+ {X.the} [is old|was old] when the world was new
+ I [share|dream of] {X.the} with a friend like you
+ I [thought of|found] {X.the} in the morning dew
the [sky|river] put on its [best|very best] blue
and [everything good|all that we wish] can still come true
[the road is long|the hill is steep], but I walk with you
the [old|tired] world felt [fresh|young] and new

+ I [dream of|think of] {X.the} in my little bed
+ {X.the} [is a song|is a tale|is a dream] inside my head
the [roses|apples] are round, the roses are red
[remember the words|do not forget] that the old man said
there is [cheese|honey] for you and [warm|fresh] brown bread

+ {X.the}, {X.the}, this is your song
+ I [wait for|look for] {X.the} all summer long
it is [good to be here|so good to be home], where I belong
the [birds|frogs] begin their evening song
the [wind|storm] is loud, but the roots are strong
the [day was|nights are] cold and the road was long

+ I [lost|heard|drew] {X.the}, but look what I found
+ {X.the} [came softly|came near], without a sound
the [wheel|world] goes round, and round, and round
the [first|last] [soft|red] leaves lie on the ground
[there is music|there is magic] all around

+ I [dream of|tell of] {X.the}, big or small
+ of [all good things|all the songs], {X.the} is the best of all
the [leaves turn red|swallows leave], and it is fall
a [shadow|kitten] dances on the wall
[somebody sings|I hear a voice], I hear a call

+ {X.the} [was with me|is here], in heat and cold
+ [nobody sells|nobody buys] {X.the} for [coins|bars] of gold
a [strong|small] [warm|soft] hand is there to hold
it is the [best|oldest|sweetest] tale that was ever told
the [leaves|fields] are yellow, the fields are gold
we [laugh at night|sing in the rain] and we never grow old

+ I [met|saw|heard] {X.the} in a [{+soft}|deep] blue dream
+ I [think of|sing of] {X.the} by the mountain stream
the [lanterns|windows] shine, the lanterns gleam
we [had|shared] some [cake|plums] with a lot of cream
the [hills|roofs] are white, and the windows gleam

+ [who sent|who brought] {X.the} to my own front door
+ the more I see {X.the}, I [love|like] it more
the [sea|tide] comes in and kisses the shore
[I have never been|we have never been] so glad before
the [mice|shoes] are dancing across the floor

+ I [talk to|look at] {X.the} from my window sill
+ I [loved|liked] {X.the} then, and I love it still
the [sheep|clouds] go slowly up the hill
the [night is deep|snow is deep], the world is still

+ I [wake up with|think of] {X.the} in the early spring
+ [for|of] {X.the} I laugh, and for {X.the} I sing
+ {X.the} [is such|is really] a wonderful thing
the [robin|blackbird] lifts its little wing
and [who|nobody] knows what the days will bring
I [hear|know] a bell, and I hear it ring

+ {X.the} [is here|is near], it is in the air
+ I [look for|find] {X.the} nearly everywhere
the [wind|sun] is playing with my hair
there is [bread|milk] for all, if we only share
and [love|hope] is here, and love is there
I [sit and rest|sit and dream] in my rocking chair

+ come, read of {X.the} in my [old|picture] book
+ there is {X.the}, [my friend|I say], come here and look
the [trout|frogs] jump up in the silver brook
how [little|long] it was, and how long it took

+ I [think of|sing of] {X.the} from time to time
+ {X.the} [gave me|wrote me] this little rhyme
the [hill|tower] is high, but we love to climb
the [old|church] bells play their evening chime

+ I [say|sing] to {X.the}: be a friend of mine
+ {X.the} [is sweet|is good] like a song of mine
the [rain|storm] is over, the sun will shine
the [grapes|plums] hang heavy, dark and fine
[tea is at five|school is at eight], and bed at nine

+ {X.the} [lives|sleeps] [safe|deep] inside my heart
+ [no night|no road] can keep {X.the} and me apart
a [smile|kind word] is a good place to start
[you have|she has] a song, and I have a part

+ {X.the} [waits|sleeps] in a far-off land
+ I [drew|wrote] {X.the} with a stick in the sand
come [here|now], my dear, and take my hand
[some things|a few things] are hard to understand

+ {X.the} [goes with me|is with me] wherever one goes
+ I [like|love] {X.the} better than any rose
a [wave|wind] runs over my cold bare toes
and [where it ends|how it ends], nobody knows
the [little|quiet] stream goes on and grows

+ I [dream of|think of] {X.the} when I am asleep
+ {X.the} [is a promise|is a secret] that I will keep
the [shepherd|moon] is counting his [white|sleepy] sheep
the [lake|well] is cold, and the lake is deep

+ I [wished for|told of] {X.the} once or twice
+ {X.the} [is warm|is mine], and {X.the} is nice
we [skate|slide] in circles on the ice
the [cat|owl] is dreaming of the mice

+ I [look for|look at] {X.the} through the morning fog
+ I [told my cat|told my friend] of {X.the}, and I told my dog
the [pond|well] belongs to an old green frog
we [sat|sang] side by side on a mossy log
"""
SOFT = "soft little gentle quiet silver golden".split()
POEM_WORDS = (
    "moon sun star sea night morning evening spring summer winter autumn snow rain wind storm "
    "fog cloud "
    "river forest mountain island garden rose tulip daisy tree leaf home mother grandmother city "
    "ocean "
    "rainbow music time school birthday dream road bridge village candle shadow"
).split()
MASS = set(
    "spring summer autumn winter snow rain wind fog music time school home mother grandmother".split()
)
BARE = {
    *THEMES,
    "music",
    "time",
    "school",
    "home",
    "mother",
    "grandmother",
    "spring",
    "summer",
    "autumn",
    "winter",
    "joy",
    "peace",
}


@cache
def topics() -> dict[str, Entry]:
    """What poems can be about. "the": how a line calls it."""
    found: dict[str, Entry] = {}
    for entry in (
        *(noun(word, "verse", mass=word in MASS) for word in POEM_WORDS),
        *(Entry(word, "verse", {}) for word in (*THEMES, "joy", "peace")),
        *lists()["weather"],
        *lists()["animal"],
        *lists()["food"],
        *lists()["thing"],
        *lists()["place"],
        *words()["role_G"],
        *lists()["job"],
    ):
        called = entry.word if entry.word in BARE else f"the {entry.word}"
        found.setdefault(entry.word, Entry(entry.word, "verse", {"the": called}))
    return found


@cache
def blocks() -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """For each sound: lines that name the topic, and lines that do not."""
    found = []
    for block in LINES.strip().split("\n\n"):
        lines = block.split("\n")
        named = tuple(line[2:] for line in lines if line.startswith("+ "))
        found.append((named, tuple(line for line in lines if not line.startswith("+ "))))
    return tuple(found)


@cache
def grammar() -> Grammar:
    """Lines of verse: rule `named` with the topic, `free` without, and single lines by number."""
    lines: dict[str, str] = {}
    for number, (named, free) in enumerate(blocks()):
        lines |= {f"n_{number}_{i}": line for i, line in enumerate(named)}
        lines |= {f"f_{number}_{i}": line for i, line in enumerate(free)}
    rules: dict[str, str | tuple[str, ...]] = dict(lines)
    rules["named"] = tuple(line for name, line in lines.items() if name[0] == "n")
    rules["free"] = tuple(line for name, line in lines.items() if name[0] == "f")
    return Grammar(
        rules,
        {"soft": tuple(Entry(w, "soft") for w in SOFT), "topic": tuple(topics().values())},
        {"X": "topic"},
    )


def last_word(line: str) -> str:
    """The last word of a line, in lower case."""
    found = [token for token in tokens_of(line) if token[0].isalpha()]
    return found[-1].lower() if found else ""


def rhyming(first: str, second: str) -> bool:
    """True where two different words rhyme by the table."""
    return second in rhymes_of(first)


def _pair(topic: Entry, rng: Random, used: set[int], both: bool) -> list[str]:
    """Two lines that rhyme, the first one about the topic (or neither)."""
    while True:
        number = int(rng.random() * len(blocks()))
        if number in used:
            continue
        named, free = blocks()[number]
        first = f"n_{number}_{int(rng.random() * len(named))}"
        second = f"f_{number}_{int(rng.random() * len(free))}"
        if not both:
            first = f"f_{number}_{int(rng.random() * len(free))}"
        lines = [grammar().write(name, {"X": topic}, rng) for name in (first, second)]
        if rhyming(last_word(lines[0]), last_word(lines[1])):
            used.add(number)
            return lines


SCHEMES = {"aabb": (0, 1, 2, 3), "abab": (0, 2, 1, 3), "abba": (0, 2, 3, 1)}


def stanza(topic: Entry, rng: Random, used: set[int], scheme: str) -> list[str]:
    """Four lines."""
    lines = _pair(topic, rng, used, True) + _pair(topic, rng, used, rng.random() < 0.4)
    return [lines[i] for i in SCHEMES[scheme]]


def punctuated(lines: Sequence[str], middle: str = ",") -> str:
    """Lines of a stanza with signs at their ends; `middle` is the sign halfway through."""
    half = len(lines) // 2 - 1
    marks = [
        "." if i == len(lines) - 1 else middle if i == half else "," for i in range(len(lines))
    ]
    return "\n".join(line + mark for line, mark in zip(lines, marks, strict=True))


def poem(topic: str, stanzas: int, rng: Random, scheme: str | None = None) -> str:
    """A poem of so many stanzas about the topic."""
    chosen = scheme or rng.choice(tuple(SCHEMES))
    used: set[int] = set()
    entry = topics()[topic]
    middle = "." if rng.random() < 0.6 else ","
    return "\n\n".join(punctuated(stanza(entry, rng, used, chosen), middle) for _ in range(stanzas))


def couplet(topic: str, rng: Random) -> str:
    """Two lines that rhyme, the first of them about the topic."""
    return punctuated(_pair(topics()[topic], rng, set(), True))


def line_parses(line: str, topic: str) -> str:
    """How a line (without its last sign) reads: "named", "free", or "" if it is no line of ours."""
    roles = {"X": topics()[topic]}
    if grammar().reads("free", line, roles) is not None:
        return "free"
    return "named" if grammar().reads("named", line, roles) is not None else ""


def is_verse(text: str, topic: str, stanzas: int = 0, size: int = 4) -> bool:
    """True for stanzas of lines of ours that name the topic and rhyme in one scheme throughout."""
    if topic not in topics():
        return False
    parts = text.split("\n\n")
    if stanzas and len(parts) != stanzas:
        return False
    kinds, seen, schemes = [], set(), set(SCHEMES) if size == 4 else {"aa"}
    for part in parts:
        lines = part.split("\n")
        if len(lines) != size or not part.endswith("."):
            return False
        for line in lines:
            if line[-1:] not in (",", ".") or line[:-1] in seen:
                return False
            seen.add(line[:-1])
            kinds.append(line_parses(line[:-1], topic))
        ends = [last_word(line) for line in lines]
        pairs = {
            "aabb": ((0, 1), (2, 3)),
            "abab": ((0, 2), (1, 3)),
            "abba": ((0, 3), (1, 2)),
            "aa": ((0, 1),),
        }
        schemes = {s for s in schemes if all(rhyming(ends[a], ends[b]) for a, b in pairs[s])}
    return bool(schemes) and all(kinds) and "named" in kinds
