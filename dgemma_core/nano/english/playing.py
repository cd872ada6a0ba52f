"""Kinds for play: short dialogues and acrostics."""

from __future__ import annotations

from functools import cache
from random import Random

from dgemma_core.nano.english.grammar import Grammar
from dgemma_core.nano.english.kind import Kind, Slots
from dgemma_core.nano.english.lexicon import lists, plain
from dgemma_core.nano.english.stories import CAST, entry_for, words
from dgemma_core.nano.english.words import Entry
from dgemma_core.nano.english.writing import topic_phrase

DIALOGUES: dict[str, tuple[str, ...]] = {
    "W": (
        "{A}: [Have you heard|Did you hear]? There will be {W} on {+day}.\n[{B}: Really? I "
        "wanted to go out.\n{A}: We can go another day.|{B}: On that day? My coat has a "
        "hole.\n{A}: You can have my coat.]\n{B}: [That is kind of you|You always know what to "
        "do].",
        "{A}: [Have you looked outside|Did you see the sky this morning]?\n{B}: [Yes, nothing "
        "but {W}|Yes, there is so much {W}].\n{A}: [Then let us stay at home|Then we should take "
        "our coats].[?\n{B}: I do not mind the {W}, I like it.]\n{B2}: [Good idea|You are "
        "right]. [I will make some cocoa|I will see you later].",
        "{A}: [I am tired of this {W}|Will this {W} ever end]?\n{B}: [It cannot last for ever|It "
        "will be over by {+day}].\n{A}: [How do you know|Are you sure]?\n{B}: [My grandmother "
        "said so, and she is always right|I just hope so].[?\n{A}: Then I hope so, too.]",
    ),
    "F": (
        "{A}: Who [took|ate] all the {F.gen}?\n{B}: [It was not me.\n{A}: Then who was it|I took "
        "only a little.\n{A}: And what is that on your chin]?\n{B}: [All right, it was me|You "
        "have caught me].[?\n{A}: Next time we share.]",
        "{A}: [What are you eating|What smells so good]?\n{B}: [It is {F.some}|I have {F.some}]. "
        "[Would you like a bite|Do you want to try]?\n{A}: [Yes, please|Oh yes, thank you]. [It "
        "tastes wonderful|I have never had anything better].[?\n{B}: There is more in the "
        "kitchen.]",
        "{A}: [Good morning|Hello]. [Do you have any {F.gen}?|I am looking for {F.gen}.]\n{B}: "
        "[Yes, fresh from this morning|Of course]. [How much would you like?\n{A}: Just a "
        "little, please|How many bags would you like?\n{A}: One bag, please].\n{B}: [Here you "
        "are|There you go]. [Have a nice day|That makes {+number} coins].[?\n{A}: Thank you, and "
        "goodbye.]",
    ),
    "Z": (
        "{A}: [Did you hear that|What was that noise]?\n{B}: [It is only the {Z} next door|That "
        "must be a {Z}].\n{A}: [A {Z}, at this time of night|A {Z}, so close to the "
        "house]?\n{B}: [Go to the window and look|It comes every night].[?\n{A}: I would rather "
        "stay here.]",
        "{A}: [Look, there is a {Z}!|Do you see the {Z} over there?]\n{B}: [Where?|I do not see "
        "it.]\n{A}: [Right behind the tree|Next to the fence]. [Be very quiet|Do not "
        "move].\n{B}: [Oh, now I see it|It is beautiful].[?\n{A}: I come here every day to see "
        "it.] ",
        "{A}: [I would like to have a {Z}.|Can we keep a {Z}?]\n{B}: [A {Z} needs a lot of care.|"
        "And who will feed it?]\n{A}: [I will, every day|I promise to take care of it].\n{B}: "
        "[Let me think about it|We will see].[?\n{A}: Please, please, please!]",
    ),
    "P": (
        "{A}: [Where have you been all day?|I was looking for you!]\n{B}: [I was {P.in}|I went "
        "{P.to}].\n{A}: [All by yourself|And what did you do there]?\n{B}: [I watched the clouds|"
        "I wanted to be alone for a while].[?\n{A}: Next time take me with you.]",
        "{A}: [Shall we go {P.to} on {+day}|What about a trip {P.to}]?\n{B}: [I would love to|"
        "That sounds like fun]. [When do we meet?\n{A}: Let us meet at {+number}|What should I "
        "bring?\n{A}: Bring something to eat].\n{B}: [I will be there|See you then].[?\n{A}: Do "
        "not be late!]",
        "{A}: [Excuse me, how do I get {P.to}|Excuse me, is it far {P.to}]?\n{B}: [Go straight "
        "on and turn left at the well|It is only ten minutes from here].\n{A}: [Thank you very "
        "much|That is kind of you].\n{B}: [You are welcome|Have a nice walk].[?\n{A}: Goodbye!]",
    ),
    "T": (
        "{A}: [I made this {T} for you|This {T} is for you].\n{B}: [For me|Really]? [It is "
        "lovely|How beautiful]!\n{A}: [I am glad that you like it|Happy birthday].\n{B}: [I will "
        "keep it for ever|Nobody ever gave me such a {T}].",
        "{A}: [Have you seen my {T}?|I cannot find my {T}.]\n{B}: [When did you see it "
        "last?\n{A}: This morning, I think|Where did you put it?\n{A}: On the table, I think|"
        "Where did you have it last?\n{A}: I do not remember].\n{B}: [Look under the bed.|Is "
        "that it, behind you?][?\n{A}: There it is, thank you!]",
        "{A}: [May I borrow your {T}|Could you lend me your {T}]?\n{B}: [What do you need it for|"
        "Why do you need it]?\n{A}: [It is a surprise|I want to show it to my sister].\n{B}: "
        "[All right, but bring it back|Take it, but be careful with it].[?\n{A}: I promise.]",
        "{A}: [How much is this {T}|What does the {T} cost]?\n{B}: [It costs {+number} coins|"
        "{+number.cap} coins].\n{A}: [That is too much|I do not have so many].\n{B}: [For you I "
        "will make it less|Then take it, it is yours].[?\n{A}: You are very kind.]",
    ),
    "J": (
        "{A}: [Good day, are you the {J}|Excuse me, is there a {J} here]?\n{B}: [Yes, that is me|"
        "You have found the right one]. [What can I do for you|How can I help]?\n{A}: [I need "
        "your help|I have a question]. [Do you have time|Is this a good moment]?\n{B}: [For you, "
        "always|Come in and sit down].",
        "{A}: [What do you want to be one day|What will you be when you are grown up]?\n{B}: [I "
        "want to be a {J}|A {J}, I think]. [And you|What about you]?\n{A}: [I do not know yet|I "
        "change my mind every week].\n{B}: [There is still time|You would be a good "
        "teacher].[?\n{A}: Maybe you are right.]",
        "{A}: [Who was that at the door|Who came to see you]?\n{B}: [It was the {J}|Only the "
        "{J}].\n{A}: [What did the {J} want|Is anything wrong]?\n{B}: [Just to say hello|To "
        "bring me a letter].[?\n{A}: That was nice.]",
    ),
    "": (
        "{A}: [Knock, knock!|Hello, is anybody home?]\n{B}: Who is there?\n{A}: [It is me, {A}|"
        "Only me, {A}]. [Open the door, it is cold.|May I come in?]\n{B}: [Of course|Come in]! "
        "[I was waiting for you|The tea is ready].",
        "[{A}: I cannot sleep.\n{B}: Count some sheep.\n{A}: I have counted a hundred.\n{B}: "
        "Then count the stars.|{A}: Are you still awake?\n{B}: Yes, I am thinking.\n{A}: What "
        "are you thinking about?\n{B}: About [tomorrow|you|my old home].][?\n{A}: Good night, "
        "{B}.]",
        "{A}: [Hello, {B}|Good morning, {B}]! [How are you|How was your week]?\n{B}: [Very well, "
        "thank you|A little tired]. [And you|How about you]?\n{A}: [I am fine|I cannot "
        "complain]. [Do you have time for a walk|Shall we have a cup of tea]?\n{B}: [I would "
        "like that|Gladly].[?\n{A}: Then let us go.]",
        "{A}: [I am sorry that I am late|Sorry, I missed the bus].\n{B}: [I have been waiting "
        "for an hour|It does not matter].\n{A}: [It will not happen again|I ran all the "
        "way].\n{B}: [Now you are here|Let us go in].[?\n{A}: Thank you for waiting.]",
    ),
}


@cache
def dialogues() -> Grammar:
    """The grammar of dialogues: a rule for each class of topic."""
    rules = {
        f"talk_{role or 'x'}": tuple(text.replace("{B2}", "{B}").rstrip() for text in texts)
        for role, texts in DIALOGUES.items()
    }
    numbers = tuple(
        type(e)(e.word, e.kind, {"cap": e.word.capitalize()}) for e in lists()["number"]
    )
    return Grammar({k.lower(): v for k, v in rules.items()}, {**words(), "number": numbers}, CAST)


def _speakers(role: str) -> str:
    return f"talk_{role or 'x'}".lower()


@cache
def _talked() -> tuple[tuple[str, str], ...]:
    found = []
    for role in DIALOGUES:
        if role:
            found += [(role, entry.word) for entry in words()[CAST[role]]]
    return tuple(found)


def _draw_dialogue(rng: Random) -> Slots:
    a, b = rng.sample(lists()["name"], 2)
    role, topic = rng.choice(_talked()) if rng.random() < 0.75 else ("", "")
    named = rng.random() < 0.6
    ask = ("named" if named else "free") + ("_about" if role else "")
    return {
        "ask": ask,
        "role": role,
        "about": topic,
        "pair": f"{a.word} {b.word}" if named else "",
        "a": a.word,
        "b": b.word,
        "topic": topic_phrase(topic, rng) if topic else "",
    }


def _write_dialogue(slots: Slots, rng: Random) -> str:
    role = slots["role"]
    roles = {"A": _name(slots["a"]), "B": _name(slots["b"])}
    if role:
        roles[role] = entry_for(role, slots["about"])
    return dialogues().write(_speakers(role), roles, rng, 0.5)


@cache
def _name(word: str) -> Entry:
    return next(e for e in lists()["name"] if e.word == word)


def _check_dialogue(slots: Slots, text: str) -> bool:
    roles = {slots["role"]: entry_for(slots["role"], slots["about"])} if slots["role"] else {}
    orders: list[dict[str, Entry]] = [{}]
    if slots["ask"].startswith("named"):
        a, b = _name(slots["a"]), _name(slots["b"])
        orders = [{"A": a, "B": b}, {"A": b, "B": a}]
    rules = [_speakers(slots["role"])] if slots["role"] else [_speakers(role) for role in DIALOGUES]
    return any(
        dialogues().reads(rule, text, {**roles, **order}) is not None
        for rule in rules
        for order in orders
    )


_DIALOGUE = (
    "[Write|Write me|Give me|Make up|Invent|I need] a [short |]dialogue{who}{what}.",
    "[Write|Give me|Make up] a [short |]conversation{who}{what}.",
    "[Can you write|Could you write|Can you make up|Do you have] a dialogue{who}{what}?",
    "[A dialogue|A little talk|A chat|Two people talk: a dialogue|A small scene|A scene for the "
    "theatre]{who}{what}, please.",
    "[What would a talk|What might a conversation|How would a dialogue]{who}{what} sound like?",
    "[For our school play I need a dialogue|Let me read a conversation|Show me a short "
    "talk]{who}{what}.",
)
DIALOGUE = Kind(
    name="dialogue",
    about="a short dialogue, perhaps between two names, perhaps about a thing",
    wordings={
        ask: tuple(text.replace("{who}", who).replace("{what}", what) for text in _DIALOGUE)
        for ask, who, what in (
            ("named", " between {a} and {b}", ""),
            ("named_about", " between {a} and {b}", " about {topic}"),
            ("free", "", ""),
            ("free_about", "", " about {topic}"),
        )
    },
    draw=_draw_dialogue,
    write=_write_dialogue,
    check=_check_dialogue,
    key=("about", "pair"),
)

ADJECTIVES = (
    "adventurous amazing amused artful brave big blue bright busy careful calm clever curious "
    "cold dear dancing drowsy early "
    "eager elegant funny friendly fast faithful gentle good golden green graceful happy hungry "
    "honest huge hopeful icy idle "
    "imaginary jolly joyful jumping kind keen little lovely loud lucky lonely merry mighty "
    "musical noisy nice nimble nightly "
    "old odd orange obedient proud pretty patient polite playful quiet quick red restless round "
    "small soft sleepy silver shy "
    "sunny tall tiny tired tidy tender unafraid unseen velvety very-old warm wild white wise "
    "wandering young yellow yawning "
    "zigzagging zealous"
).split()
NOUNS = (
    "foxes owls bears bees frogs geese sheep mice rabbits otters swans robins horses deer cats "
    "dogs children friends "
    "sailors bakers gardeners singers dancers farmers neighbours travellers rivers clouds stars "
    "waves leaves flowers"
).split()
VERBS_PLURAL = (
    "wait|dance|sleep|sing|rest|play|wander|whisper|gather|travel|move|shine|come "
    "home|say hello|find a way|tell stories|make music"
)
TAILS = (
    "in the rain|by the river|under the moon|over the hills|in the morning|at night|all day long|"
    "in the snow|near the sea|"
    "without a sound|in the garden|through the fields|until the evening|in spring|in the wind|"
    "far from home"
)
OPENERS = (
    "Always|Under the trees|Behind the hill|Beside the lake|Close to the sea|Down by the pond|"
    "Deep in the forest|Every day|"
    "Early in spring|Far away|From near and far|Gently|Here|High above|In summer|In the night|"
    "Joyfully|Kindly|Late at night|Look,|"
    "Mornings are lovely when|Most of the time|Now|Never alone,|On the island|Over the bridge|"
    "Patiently|Quietly|Quickly|Round the corner|"
    "Softly|Slowly|Today|Together|Up in the air|Until the sun sets,|Very softly|When evening "
    "comes,|While the wind blows,|Year after year|Yesterday is gone;|Zigzagging"
)


@cache
def acrostics() -> Grammar:
    """Lines of acrostics."""
    rules: dict[str, str | tuple[str, ...]] = {
        "line": (
            f"{{+first}} {{+beings}} [{VERBS_PLURAL}] [{TAILS}]",
            f"[{OPENERS}] [the |]{{+first}} {{+beings}} [{VERBS_PLURAL}][? [{TAILS}]]",
            f"[{OPENERS}] the {{+beings}} [{VERBS_PLURAL}][? [{TAILS}]]",
        )
    }
    return Grammar(rules, {"first": plain(ADJECTIVES, "first"), "beings": plain(NOUNS, "beings")})


@cache
def _starts() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """For each letter the adjectives and the openers that begin with it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {
        letter: (
            tuple(word for word in ADJECTIVES if word[0] == letter),
            tuple(text for text in OPENERS.split("|") if text[0].lower() == letter),
        )
        for letter in letters
    }


def spellable(word: str) -> bool:
    """True where each letter of the word can begin a line."""
    return word.isalpha() and all(any(_starts()[letter]) for letter in word.lower())


@cache
def acrostic_words() -> tuple[str, ...]:
    """Names and nouns of three to six letters that can be spelled."""
    found = [
        e.word
        for name in ("name", "animal", "thing", "food", "place", "weather", "season", "mood")
        for e in lists()[name]
    ]
    more = (
        "love hope home moon star peace dream light music river friend winter rose snow sea "
        "sky tree king"
    ).split()
    return tuple(dict.fromkeys(w for w in (*found, *more) if 3 <= len(w) <= 6 and spellable(w)))


def acrostic(word: str, rng: Random) -> str:
    """A line for each letter of the word."""
    lines: list[str] = []
    used: set[str] = set()
    for letter in word.lower():
        adjectives, openers = _starts()[letter]
        while True:
            being, verb, tail = (
                rng.choice(NOUNS),
                rng.choice(VERBS_PLURAL.split("|")),
                rng.choice(TAILS.split("|")),
            )
            if not {being, verb, tail} & used:
                used |= {being, verb, tail}
                break
        if adjectives and (not openers or rng.random() < 0.6):
            lines.append(f"{rng.choice(adjectives).capitalize()} {being} {verb} {tail}")
        elif rng.random() < 0.5:
            lines.append(f"{rng.choice(openers)} the {being} {verb}")
        else:
            lines.append(f"{rng.choice(openers)} the {rng.choice(ADJECTIVES)} {being} {verb}")
    return ",\n".join(lines) + "."


def _check_acrostic(slots: Slots, text: str) -> bool:
    lines = text.split("\n")
    word = slots["word"].lower()
    if len(lines) != len(word) or not text.endswith(".") or len(set(lines)) != len(lines):
        return False
    if not all(
        line[:-1] and line[-1] == ("." if i == len(lines) - 1 else ",")
        for i, line in enumerate(lines)
    ):
        return False
    return all(
        line[0].lower() == letter and acrostics().reads("line", line[:-1]) is not None
        for line, letter in zip(lines, word, strict=True)
    )


ACROSTIC = Kind(
    name="acrostic",
    about="lines whose first letters spell a word",
    wordings={
        "": (
            "[Write|Make|Give me|Compose|I want|Can I have|Invent|I need] an acrostic [for|with|"
            "of|on|about] {word}.",
            "[Write|Make] a poem whose [first letters|lines' first letters] spell {word}.",
            "[Can you write|Could you make|Do you know|Would you write] an acrostic for {word}?",
            "[Acrostic|An acrostic, please]: {word}",
            "[The first letters should spell|Spell with the first letters of your lines|Let the "
            "lines begin with the letters of] {word}.",
            "[Write a line for each letter of|One line for each letter of|A poem that spells|"
            "Write lines that spell] {word}.",
        )
    },
    draw=lambda rng: {"word": rng.choice(acrostic_words())},
    write=lambda slots, rng: acrostic(slots["word"], rng),
    check=_check_acrostic,
    key=("word",),
    late=True,
)

KINDS: tuple[Kind, ...] = (DIALOGUE, ACROSTIC)
