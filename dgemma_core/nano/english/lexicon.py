"""Names, verbs, adjectives, opposites, rhymes, dates and capitals: the words beside those of things.py."""

from __future__ import annotations

from functools import cache

from dgemma_core.nano.english.things import (
    ANIMALS,
    FOODS,
    JOBS,
    SPOTS,
    THINGS,
    animals,
    foods,
    jobs,
    places,
    skies,
    things,
)
from dgemma_core.nano.english.words import Entry, Verb, comparative_of, person, verb

GIRLS = (
    "Mia Anna Lily Nora Ella Ruby Zoe Ida Clara Rosa Eva Hana Lucy Maya Tara Olive Nina Emma "
    "Julia Sara "
    "Amy Wendy Kate Fay Vera Iris Dora Betty Gina Pia Leila Yuki Amina Priya Carmen Freya Greta "
    "Hazel Ivy Joan"
).split()
BOYS = (
    "Tom Ben Leo Max Sam Finn Hugo Oscar Theo Noah Adam Jack Paul Felix Omar Eli Otto Ivan Dan "
    "Carl "
    "Luke Nico Rory Toby Viktor Walter Abel Bruno Colin Emil Fred Gus Henry Ike Jonas Kofi Lars "
    "Mateo Ned Raj"
).split()
PET_NAMES = (
    "Rex Biscuit Pepper Shadow Daisy Socks Whiskers Bella Rusty Snowy Coco Ginger Spot Tiger"
).split()

COLOURS = "red blue green yellow orange purple pink brown black white grey golden silver".split()
MOODS = (
    "happy sad tired proud brave curious calm lonely excited nervous cheerful hungry shy grateful"
).split()
MOOD_OF = "happy proud cheerful calm grateful glad".split()
SIZES = "small little big large tiny huge".split()
LOOKS = (
    "old new bright pretty shiny strange wonderful beautiful plain broken dusty clean strong "
    "soft heavy"
).split()
NATURE = (
    "kind gentle clever funny quiet patient careful friendly brave polite honest wise helpful"
).split()
MANNER = "quickly slowly quietly carefully happily gently loudly softly bravely patiently".split()
TIMES_PAST = "yesterday;last night;last week;this morning;on Monday;on Sunday".split(";")
TIMES_NOW = "every day;every morning;every evening;on Sundays;in summer;in winter".split(";")

VERBS: dict[str, Verb] = {
    entry.base: entry
    for entry in map(
        verb,
        (
            "be/was/been have/had/had do/did/done go/went/gone say/said/said see/saw/seen "
            "take/took/taken "
            "get/got/got make/made/made come/came/come know/knew/known give/gave/given "
            "find/found/found "
            "think/thought/thought tell/told/told feel/felt/felt leave/left/left keep/kept/kept "
            "hold/held/held bring/brought/brought begin/began/begun write/wrote/written "
            "sit/sat/sat "
            "stand/stood/stood lose/lost/lost run/ran/run eat/ate/eaten drink/drank/drunk "
            "sing/sang/sung "
            "swim/swam/swum fly/flew/flown draw/drew/drawn grow/grew/grown throw/threw/thrown "
            "catch/caught/caught buy/bought/bought sell/sold/sold build/built/built send/sent/sent "
            "sleep/slept/slept sweep/swept/swept meet/met/met feed/fed/fed read/read/read "
            "ride/rode/ridden drive/drove/driven break/broke/broken wear/wore/worn "
            "hear/heard/heard "
            "teach/taught/taught fall/fell/fallen wake/woke/woken win/won/won dig/dug/dug "
            "cut/cut/cut "
            "put/put/put hide/hid/hidden shine/shone/shone spend/spent/spent "
            "forget/forgot/forgotten "
            "understand/understood/understood choose/chose/chosen pay/paid/paid let/let/let "
            "lie/lay/lain blow/blew/blown speak/spoke/spoken steal/stole/stolen rise/rose/risen "
            "ring/rang/rung hit/hit/hit shut/shut/shut set/set/set lead/led/led spin/spun/spun "
            "walk jump climb help open close paint carry wash clean water plant pick cook bake "
            "mend "
            "visit call love like want need play work laugh smile cry look watch listen wait "
            "talk ask "
            "answer thank hug share push pull touch lift drop move stop start try learn study "
            "count "
            "dance skip hop float sail travel arrive return rest dream wish hope worry whisper "
            "shout "
            "clap wave nod knock pour stir taste smell fill pack wrap tie fold polish repair "
            "knit sew "
            "admire follow chase remember guess explain promise invite greet welcome enjoy "
            "collect borrow lend/lent/lent trade finish decorate measure sort show/showed/shown "
            "print "
            "mix peel chop boil roast fry slice discover explore cross pass miss notice surprise"
        ).split(),
    )
}
"""Verbs by base form."""

TRANSITIVE: dict[str, tuple[str, ...]] = {
    "thing": tuple(
        "find lose buy sell carry hold keep bring draw paint hide clean mend drop lift choose show "
        "want need like miss notice admire collect borrow pack wrap".split()
    ),
    "food": tuple("eat buy bring taste share want smell like need sell choose pack".split()),
    "animal": tuple("see feed watch chase follow find hear love draw help greet".split()),
    "place": tuple("visit see leave find like love explore paint remember".split()),
    "job": tuple("help meet call thank see ask greet visit invite know remember".split()),
}
"""What is done to what: verbs by the class of their object."""
INTRANSITIVE: dict[str, tuple[str, ...]] = {
    "name": tuple(
        "laugh smile sing dance wait work read sleep run swim walk talk listen rest dream play "
        "cook "
        "whisper shout clap wave skip".split()
    ),
    "animal": tuple("sleep run wait play rest hide jump eat".split()),
}

OPPOSITES: tuple[tuple[str, str], ...] = tuple(
    (pair.split("/")[0], pair.split("/")[1])
    for pair in (
        "hot/cold big/small happy/sad fast/slow up/down tall/short light/dark old/new "
        "open/closed full/empty "
        "wet/dry hard/soft loud/quiet clean/dirty rich/poor strong/weak early/late near/far "
        "high/low thick/thin "
        "wide/narrow young/old good/bad right/wrong inside/outside above/below before/after "
        "day/night "
        "morning/evening summer/winter north/south east/west left/right start/finish begin/end "
        "push/pull "
        "win/lose give/take buy/sell laugh/cry love/hate remember/forget find/lose come/go "
        "rise/fall open/close "
        "always/never everything/nothing first/last long/short deep/shallow sharp/blunt "
        "heavy/light easy/difficult "
        "cheap/expensive safe/dangerous brave/afraid kind/cruel polite/rude rough/smooth "
        "sweet/sour warm/cool "
        "awake/asleep alive/dead true/false noisy/quiet busy/idle bright/dim simple/complicated "
        "question/answer "
        "friend/enemy arrive/leave ask/answer float/sink freeze/melt build/destroy "
        "arrival/departure top/bottom "
        "front/back entrance/exit success/failure increase/decrease accept/refuse lock/unlock "
        "tie/untie "
        "appear/disappear agree/disagree possible/impossible lucky/unlucky fair/unfair "
        "tidy/untidy usual/unusual"
    ).split()
)

COMPARATIVES: dict[str, tuple[str, str]] = {
    **{
        word: comparative_of(word)
        for word in (
            "tall short fast slow warm cold hot big small old young new light dark loud quiet "
            "clean dirty rich "
            "poor strong weak high low thick thin wide narrow long deep sharp heavy easy cheap "
            "safe brave kind "
            "rough smooth sweet bright happy sad funny pretty busy lucky hungry noisy sunny tiny "
            "large nice wise "
            "soft hard dry wet early late near flat fat calm gentle simple"
        ).split()
    },
    "good": ("better", "best"),
    "bad": ("worse", "worst"),
    "far": ("farther", "farthest"),
    **{
        word: (f"more {word}", f"most {word}")
        for word in (
            "beautiful careful interesting important expensive dangerous difficult curious "
            "patient comfortable "
            "famous delicious wonderful colourful useful"
        ).split()
    },
}

IRREGULAR_PLURALS: dict[str, str] = dict(
    pair.split("/")
    for pair in (
        "child/children man/men woman/women foot/feet tooth/teeth person/people knife/knives "
        "leaf/leaves "
        "loaf/loaves shelf/shelves half/halves wife/wives life/lives thief/thieves ox/oxen "
        "calf/calves "
        "hero/heroes echo/echoes snowman/snowmen grandchild/grandchildren"
    ).split()
)
MORE_NOUNS = (
    "house tree flower river road street door window wall roof floor table bed box glass plate "
    "dish watch "
    "brush bench peach beach church class bus story baby lady city party family country berry "
    "cherry penny day "
    "boy toy monkey valley tray cloud star stone song game picture word page pen bag shoe sock "
    "shirt dress "
    "button pocket friend teacher student doctor farmer king queen bird egg nest wing tail claw "
    "paw branch "
    "field hill island bridge tower ship plane wheel engine ticket bill gift prize idea question "
    "answer "
    "lesson number letter name minute hour week month year night morning evening dream wish joke "
    "secret "
    "neighbour uncle aunt cousin brother sister parent twin guest stranger leader singer"
).split()

RHYMES: tuple[tuple[str, ...], ...] = tuple(
    tuple(line.split())
    for line in """
day way play say stay gray may clay today away bay hay ray tray grey
night light bright sight kite flight right white tonight delight bite candlelight
sky high fly try eye goodbye why pie dry by cry shy
sun run fun one done begun bun none
tree sea bee free me see key three tea knee we
moon soon tune spoon june noon balloon
star far car are jar
rain train plane lane again grain chain cane
snow grow go low slow glow know blow below toe though so flow aglow
blue you new true do shoe through zoo two dew
red bed head said bread instead shed thread
song long along strong belong wrong
ground sound round found around bound
tall small wall fall all ball call hall
cold old gold told hold bold fold
dream stream gleam cream team seem beam
door floor more roar shore before store pour four
hat cat sat mat that bat flat chat pat
house mouse blouse
cake lake make take wake shake snake awake
hill still will fill until spill mill sill
spring sing ring thing wing king bring string
air hair chair bear care share there where fair pear everywhere
book look took cook brook hook
bell well tell smell shell fell spell
time rhyme climb lime chime
mine line fine shine pine nine sign vine
heart start part apart art cart smart
hand land sand stand band grand understand
wind grinned pinned thinned
rose nose goes toes those close knows grows
boat coat goat float note wrote
sleep deep sheep keep leap heap asleep
green seen queen between mean bean
mice rice ice nice twice price slice
dog fog frog log jog
""".strip().split("\n")
)
"""Words by the sound of their endings."""
SAME_SOUND = frozenset(
    frozenset(pair.split("/"))
    for pair in (
        "sea/see blue/blew tea/tee by/bye right/write one/won two/to two/too four/for "
        "pear/pair bear/bare know/no there/their flour/flower new/knew through/threw "
        "rows/rose hair/hare knows/nose through/threw red/read"
    ).split()
)


@cache
def rhymes_of(word: str) -> frozenset[str]:
    """The words that rhyme with `word`, itself left out."""
    found = {other for row in RHYMES if word in row for other in row} - {word}
    return frozenset(o for o in found if frozenset((o, word)) not in SAME_SOUND)


DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
)
CAPITALS: dict[str, str] = dict(
    pair.split("/")
    for pair in (
        "France/Paris Italy/Rome Spain/Madrid Germany/Berlin England/London Ireland/Dublin "
        "Portugal/Lisbon "
        "Greece/Athens Austria/Vienna Poland/Warsaw Norway/Oslo Sweden/Stockholm "
        "Finland/Helsinki Denmark/Copenhagen "
        "Hungary/Budapest Russia/Moscow Turkey/Ankara Egypt/Cairo Kenya/Nairobi Ghana/Accra "
        "Japan/Tokyo China/Beijing "
        "India/Delhi Thailand/Bangkok Vietnam/Hanoi Peru/Lima Chile/Santiago Cuba/Havana "
        "Canada/Ottawa "
        "Scotland/Edinburgh Belgium/Brussels Switzerland/Bern Iceland/Reykjavik"
    ).split()
)
CAPITALS["India"] = "New Delhi"
NO_CAPITAL_KNOWN = (
    "Brazil Mexico Argentina Bolivia Nigeria Ethiopia Mongolia Nepal Pakistan Iran Iraq Fiji "
    "Latvia Estonia "
    "Romania Bulgaria Croatia Serbia Morocco Angola Zambia Uganda Laos Cambodia Malaysia Jordan "
    "Ukraine Panama"
).split()
"""Countries whose capital nano is not taught: the honest reply belongs to them."""

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
TENS = {
    2: "twenty",
    3: "thirty",
    4: "forty",
    5: "fifty",
    6: "sixty",
    7: "seventy",
    8: "eighty",
    9: "ninety",
}


def number_word(number: int) -> str:
    """A number from 0 to 199 in words."""
    if number < 0:
        return f"minus {number_word(-number)}"
    if number <= 20:
        return NUMBER_WORDS[number]
    if number >= 100:
        rest = number - 100
        return "one hundred" + (f" and {number_word(rest)}" if rest else "")
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{NUMBER_WORDS[ones]}" if ones else "")


THING_COLOURS: dict[str, str] = dict(
    pair.split("/")
    for pair in (
        "grass/green snow/white coal/black blood/red chocolate/brown milk/white night/black "
        "gold/yellow "
        "ink/black salt/white soil/brown ivory/white butter/yellow honey/golden blood/red"
    ).split()
)
THING_COLOURS |= {
    "a leaf": "green",
    "a ruby": "red",
    "an emerald": "green",
    "a clear sky": "blue",
    "the sun": "yellow",
    "a fire engine": "red",
    "a ripe banana": "yellow",
    "a ripe lemon": "yellow",
    "a carrot": "orange",
    "a pumpkin": "orange",
    "a crow": "black",
    "a swan": "white",
    "an elephant": "grey",
    "a flamingo": "pink",
    "a ripe tomato": "red",
    "a cucumber": "green",
    "a frog": "green",
    "a strawberry": "red",
}


@cache
def people() -> tuple[Entry, ...]:
    """Names as entries."""
    return tuple([person(n, "she") for n in GIRLS] + [person(n, "he") for n in BOYS])


def plain(words: list[str], kind: str) -> tuple[Entry, ...]:
    """Words without forms of their own."""
    return tuple(Entry(word, kind) for word in words)


@cache
def lists() -> dict[str, tuple[Entry, ...]]:
    """Word lists by the name that slots use."""
    return {
        "name": people(),
        "animal": animals(),
        "thing": things(),
        "food": foods(),
        "place": places(),
        "weather": skies(),
        "job": jobs(),
        "colour": plain(COLOURS, "colour"),
        "mood": plain(MOODS, "mood"),
        "size": plain(SIZES, "size"),
        "looks": plain(LOOKS, "looks"),
        "nature": plain(NATURE, "nature"),
        "manner": plain(MANNER, "manner"),
        "day": plain(DAYS, "day"),
        "month": plain(MONTHS, "month"),
        "season": plain("spring summer autumn winter".split(), "season"),
        "number": plain(NUMBER_WORDS[2:13], "number"),
    }


ANIMAL = {row.name: row for row in ANIMALS}
THING = {row.name.split("/")[0]: row for row in THINGS}
FOOD = {row.name: row for row in FOODS}
SPOT = {row.name: row for row in SPOTS}
JOB = {row.name.split("/")[0]: row for row in JOBS}


@cache
def entry_of(word: str) -> Entry:
    """The noun called `word`, whatever its class. KeyError if there is none."""
    for name in ("animal", "thing", "food", "place", "weather", "job"):
        for entry in lists()[name]:
            if entry.word == word:
                return entry
    raise KeyError(word)
