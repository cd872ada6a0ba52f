"""What nano knows of animals, things, food, places, weather and work: a row each, in our own words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from dgemma_core.nano.english.words import Entry, noun, place


def rows(table: str) -> list[list[str]]:
    """The cells of a table written with bars."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().split("\n")]


@dataclass(frozen=True)
class Animal:
    """An animal: its kind, how it looks, lives, eats, sounds, and what it can do."""

    name: str
    plural: str
    group: str
    size: str
    colour: str
    legs: int
    home: str
    eats: str
    young: str
    sound: str
    can: str


# name/plural | group | size | colour | legs | home | eats | young | sound (verb) | can
ANIMALS = tuple(
    Animal(
        name.split("/")[0],
        [*name.split("/"), noun(name, "").say("pl")][1],
        group,
        size,
        colour,
        int(legs),
        home,
        eats,
        young,
        sound,
        can,
    )
    for name, group, size, colour, legs, home, eats, young, sound, can in rows("""
cat | mammal | small | grey | 4 | in a house | fish and mice | kitten | meow | climb trees
dog | mammal | medium | brown | 4 | in a house | meat and bones | puppy | bark | follow a smell
horse | mammal | big | brown | 4 | in a stable | grass and oats | foal | neigh | run fast
cow | mammal | big | white | 4 | on a farm | grass | calf | moo | give milk
sheep/sheep | mammal | medium | white | 4 | on a farm | grass | lamb | bleat | grow wool
goat | mammal | medium | grey | 4 | on a farm | leaves and grass | kid | bleat | climb steep rocks
pig | mammal | medium | pink | 4 | on a farm | corn and roots | piglet | grunt | roll in the mud
donkey | mammal | big | grey | 4 | on a farm | hay and grass | foal | bray | carry heavy bags
mouse/mice | mammal | tiny | grey | 4 | in a hole | seeds and cheese | pup | squeak | slip through small holes
rabbit | mammal | small | brown | 4 | in a burrow | carrots and grass | kit | squeak | hop fast
squirrel | mammal | small | red | 4 | in a tree | nuts and seeds | kit | chatter | jump from tree to tree
hedgehog | mammal | small | brown | 4 | under a hedge | worms and beetles | hoglet | snuffle | roll into a ball
fox/foxes | mammal | medium | red | 4 | in a den | mice and berries | cub | bark | hunt at night
wolf/wolves | mammal | big | grey | 4 | in a forest | meat | pup | howl | run for hours
bear | mammal | big | brown | 4 | in a cave | berries and honey | cub | growl | sleep all winter
deer/deer | mammal | big | brown | 4 | in a forest | leaves and grass | fawn | grunt | leap over bushes
badger | mammal | medium | grey | 4 | in a burrow | worms and roots | cub | growl | dig long tunnels
otter | mammal | medium | brown | 4 | by a river | fish | pup | whistle | float on its back
beaver | mammal | medium | brown | 4 | by a river | bark and leaves | kit | whine | build dams
bat | mammal | small | black | 2 | in a cave | insects | pup | squeak | fly in the dark
lion | mammal | big | yellow | 4 | in the grassland | meat | cub | roar | hunt in a group
tiger | mammal | big | orange | 4 | in the jungle | meat | cub | roar | swim across rivers
elephant | mammal | huge | grey | 4 | in the grassland | leaves and grass | calf | trumpet | lift trees with its trunk
giraffe | mammal | huge | yellow | 4 | in the grassland | leaves | calf | hum | reach the tops of trees
zebra | mammal | big | white | 4 | in the grassland | grass | foal | bray | run fast
monkey | mammal | medium | brown | 4 | in the jungle | fruit and nuts | infant | chatter | swing from branches
camel | mammal | big | brown | 4 | in the desert | dry plants | calf | grunt | go for days without water
kangaroo | mammal | big | brown | 4 | in the grassland | grass | joey | grunt | jump very far
whale | mammal | huge | blue | 0 | in the ocean | tiny sea animals | calf | sing | dive very deep
dolphin | mammal | big | grey | 0 | in the ocean | fish | calf | click | leap out of the water
seal | mammal | big | grey | 0 | by the sea | fish | pup | bark | swim under the ice
hen | bird | small | brown | 2 | on a farm | corn and seeds | chick | cluck | lay eggs
duck | bird | small | brown | 2 | on a pond | water plants | duckling | quack | swim and fly
goose/geese | bird | medium | white | 2 | on a pond | grass | gosling | honk | fly in a long line
owl | bird | medium | brown | 2 | in a hollow tree | mice | owlet | hoot | see in the dark
eagle | bird | big | brown | 2 | on a cliff | fish and rabbits | eaglet | screech | see very far
robin | bird | tiny | red | 2 | in a garden | worms and seeds | chick | sing | sing early in the morning
crow | bird | medium | black | 2 | in a tall tree | seeds and scraps | chick | caw | solve small puzzles
parrot | bird | medium | green | 2 | in the jungle | fruit and nuts | chick | squawk | repeat words
penguin | bird | medium | black | 2 | on the ice | fish | chick | honk | swim but not fly
swan | bird | big | white | 2 | on a lake | water plants | cygnet | hiss | glide over the water
pigeon | bird | small | grey | 2 | in a city | crumbs and seeds | squab | coo | find its way home
frog | amphibian | small | green | 4 | by a pond | flies | tadpole | croak | catch flies with its tongue
snake | reptile | medium | green | 0 | under a rock | mice and eggs | snakelet | hiss | move without legs
turtle | reptile | medium | green | 4 | in a lake | water plants | hatchling | hiss | hide in its shell
lizard | reptile | small | green | 4 | under a rock | insects | hatchling | hiss | run up walls
crocodile | reptile | huge | green | 4 | in a river | meat | hatchling | growl | wait without moving
bee | insect | tiny | yellow | 6 | in a hive | nectar | larva | buzz | make honey
ant | insect | tiny | black | 6 | in an anthill | crumbs and seeds | larva | click | carry big loads
butterfly | insect | tiny | blue | 6 | in a meadow | nectar | caterpillar | flutter | fly from flower to flower
beetle | insect | tiny | black | 6 | under a log | leaves | larva | click | fold its wings
cricket | insect | tiny | green | 6 | in the grass | leaves | nymph | chirp | jump far
spider | arachnid | tiny | black | 8 | in a web | flies | spiderling | rustle | spin webs
snail | mollusc | tiny | brown | 0 | in a garden | leaves | hatchling | rustle | carry its house
octopus/octopuses | mollusc | medium | red | 8 | in the ocean | crabs | larva | gurgle | squirt ink
crab | crustacean | small | red | 10 | on a beach | tiny sea animals | larva | click | walk sideways
shark | fish | huge | grey | 0 | in the ocean | fish | pup | splash | smell food from far away
goldfish/goldfish | fish | tiny | orange | 0 | in a tank | flakes and small insects | fry | splash | breathe under water
""")
)
SILENT = frozenset(
    "butterfly beetle spider snail octopus crab shark goldfish ant turtle lizard giraffe".split()
)
"""Animals that nobody asks the sound of."""


@dataclass(frozen=True)
class Thing:
    """A thing of daily life: what it is made of, how it looks, what it is for, where it is kept."""

    name: str
    group: str
    made: str
    colour: str
    shape: str
    use: str
    where: str


# name | group | made of | colour | shape | people use it to … | where
THINGS = tuple(
    Thing(*row)
    for row in rows("""
lamp | furniture | metal | yellow | tall | read at night | on a table
kite | toy | paper | red | flat | play in the wind | in the sky
drum | instrument | wood | brown | round | beat a rhythm | in a band
bell | instrument | metal | golden | round | call people | in a tower
flute | instrument | wood | brown | thin | play a tune | in a band
violin | instrument | wood | brown | curved | play music | in a case
guitar | instrument | wood | brown | curved | play songs | in a music room
key | tool | metal | silver | small | open doors | in a pocket
hammer | tool | metal | grey | heavy | hit nails | in a toolbox
ladder | tool | wood | brown | tall | climb up high | in a shed
spade | tool | metal | grey | flat | dig in the ground | in a shed
rope | tool | hemp | brown | long | tie things together | on a boat
bucket | tool | metal | blue | round | carry water | by a well
broom | tool | wood | yellow | long | sweep the floor | in a corner
needle | tool | metal | silver | thin | sew clothes | in a small box
compass | tool | metal | golden | round | find the way | on a ship
lantern | tool | glass | golden | round | see in the dark | on a hook
telescope | tool | metal | black | long | look at the stars | on a hill
map | paper | paper | white | flat | find the way | in a bag
book | paper | paper | blue | flat | read stories | on a shelf
letter | paper | paper | white | flat | send news | in an envelope
notebook | paper | paper | green | flat | write things down | in a school bag
postcard | paper | paper | white | flat | greet a friend | in a letterbox
pencil | tool | wood | yellow | thin | draw pictures | in a drawer
brush | tool | wood | brown | long | paint pictures | in a jar
clock | furniture | metal | black | round | tell the time | on a wall
mirror | furniture | glass | silver | flat | see a face | on a wall
chair | furniture | wood | brown | low | sit down | at a table
blanket | cloth | wool | blue | soft | stay warm | on a bed
pillow | cloth | cotton | white | soft | rest a tired head | on a bed
carpet | cloth | wool | red | flat | cover the floor | on a floor
hat | clothing | felt | black | round | keep the sun off | on a head
scarf/scarves | clothing | wool | red | long | keep the neck warm | around a neck
coat | clothing | wool | green | long | stay warm | on a hook
mitten | clothing | wool | blue | soft | keep the hands warm | in a coat pocket
boot | clothing | leather | brown | heavy | walk in the mud | by a door
umbrella | tool | cloth | black | round | stay dry in the rain | by a door
basket | tool | straw | yellow | round | carry fruit | in a kitchen
cup | dish | clay | white | round | drink tea | in a kitchen
spoon | dish | metal | silver | small | eat soup | in a drawer
kettle | dish | metal | silver | round | boil water | on a stove
bottle | dish | glass | green | tall | keep water | on a shelf
candle | tool | wax | white | thin | light a room | on a table
coin | treasure | metal | golden | round | pay in shops | in a purse
ring | treasure | gold | golden | round | decorate a finger | in a small box
crown | treasure | gold | golden | round | show who is king | on a king's head
shell | treasure | chalk | white | curved | hear the sea | on a beach
feather | treasure | horn | white | light | write with ink | on the ground
pebble | treasure | stone | grey | round | skip over the water | on a beach
ball | toy | rubber | red | round | play games | on a field
doll | toy | cloth | pink | soft | play at home | in a toy box
puzzle | toy | wood | green | flat | pass a rainy day | on a table
balloon | toy | rubber | red | round | decorate a party | on a string
sled | toy | wood | red | low | slide down hills | on the snow
boat | vehicle | wood | blue | long | cross the water | on a lake
bicycle | vehicle | metal | blue | light | ride to school | on a road
train | vehicle | metal | green | long | travel far | at a station
truck | vehicle | metal | red | heavy | carry big loads | on a road
wagon | vehicle | wood | brown | heavy | carry hay | on a farm
bus/buses | vehicle | metal | yellow | long | ride through the city | in a street
""")
)


def _name(cell: str) -> str:
    return cell.split("/")[0]


@dataclass(frozen=True)
class Food:
    """Something to eat or drink."""

    name: str
    plural: str
    mass: bool
    group: str
    colour: str
    taste: str
    comes: str
    used: str


# name (a star: no plural) | group | colour | taste | comes from | people … it
FOODS = tuple(
    Food(
        _name(name).strip("*"),
        [*name.split("/"), noun(name.strip("*"), "", mass="*" in name).say("pl")][1],
        "*" in name,
        group,
        colour,
        taste,
        comes,
        used,
    )
    for name, group, colour, taste, comes, used in rows("""
apple | fruit | red | sweet | a tree | bake in pies
pear | fruit | green | sweet | a tree | eat in autumn
plum | fruit | purple | sweet | a tree | cook into jam
cherry | fruit | red | sweet | a tree | put on cakes
peach | fruit | orange | sweet | a tree | eat in summer
orange | fruit | orange | sweet | a tree | press for juice
lemon | fruit | yellow | sour | a tree | squeeze into tea
lime | fruit | green | sour | a tree | squeeze over fish
banana | fruit | yellow | sweet | a tall plant | peel by hand
grape | fruit | purple | sweet | a vine | press for juice
melon | fruit | green | sweet | a vine | eat cold
strawberry | fruit | red | sweet | a low plant | eat with cream
blueberry | fruit | blue | sweet | a bush | put in muffins
coconut | fruit | brown | sweet | a palm tree | crack with a stone
carrot | vegetable | orange | sweet | the ground | put in soup
potato/potatoes | vegetable | brown | mild | the ground | boil in a big pot
onion | vegetable | white | sharp | the ground | chop into small bits
radish/radishes | vegetable | red | sharp | the ground | slice for salads
tomato/tomatoes | vegetable | red | fresh | a vine | cook into sauce
cucumber | vegetable | green | fresh | a vine | slice for salads
pumpkin | vegetable | orange | mild | a vine | carve in autumn
pea | vegetable | green | sweet | a pod | put in soup
bean | vegetable | green | mild | a pod | cook in a stew
cabbage | vegetable | green | mild | a field | cook in soup
mushroom | vegetable | brown | earthy | the forest floor | fry in butter
bread* | baked food | brown | mild | an oven | eat with butter
cake | baked food | yellow | sweet | an oven | share at parties
cookie | baked food | brown | sweet | an oven | dip in milk
muffin | baked food | brown | sweet | an oven | eat warm
pie | baked food | golden | sweet | an oven | share on Sundays
pancake | baked food | golden | sweet | a hot pan | eat with syrup
milk* | drink | white | mild | cows | drink cold
tea* | drink | brown | bitter | dried leaves | drink hot
coffee* | drink | black | bitter | roasted beans | drink in the morning
juice* | drink | orange | sweet | fresh fruit | drink cold
cocoa* | drink | brown | sweet | cocoa beans | drink in winter
honey* | sweet food | golden | sweet | bees | spread on bread
jam* | sweet food | red | sweet | cooked fruit | spread on bread
chocolate* | sweet food | brown | sweet | cocoa beans | give as a present
sugar* | sweet food | white | sweet | sugar cane | stir into tea
cheese* | food from milk | yellow | salty | milk | put on bread
butter* | food from milk | yellow | mild | milk | spread on bread
cream* | food from milk | white | mild | milk | put on cakes
soup* | hot food | orange | salty | a big pot | eat with a spoon
rice* | grain | white | mild | wet fields | cook in water
corn* | grain | yellow | sweet | tall fields | roast over a fire
egg | food from hens | white | mild | hens | boil for breakfast
salt* | spice | white | salty | the sea | sprinkle on food
pepper* | spice | black | hot | a climbing plant | grind over food
nut | snack | brown | mild | a tree | crack open
""")
)


@dataclass(frozen=True)
class Spot:
    """A place: what one sees, hears and does there."""

    name: str
    preposition: str
    see: str
    hear: str
    do: str
    feel: str


# name | preposition | people see | people hear | people … | it is
SPOTS = tuple(
    Spot(*row)
    for row in rows("""
forest | in | tall trees | birds | look for mushrooms | shady
garden | in | flowers | bees | plant seeds | sunny
park | in | green lawns | children | go for walks | green
meadow | in | wild flowers | crickets | have picnics | wide
valley | in | a winding river | cowbells | rest by the water | deep
village | in | small houses | church bells | meet their neighbours | quiet
city | in | tall buildings | cars | work and shop | busy
kitchen | in | pots and pans | a kettle | cook meals | warm
library | in | shelves of books | turning pages | read | quiet
museum | in | old paintings | soft steps | learn about the past | big
school | at | desks and maps | bells | learn to read | lively
market | at | bright stalls | loud voices | buy fruit | busy
harbour | at | fishing boats | gulls | wait for ships | windy
station | at | long trains | whistles | say goodbye | crowded
beach | on | sand and shells | waves | build castles | sunny
island | on | palm trees | waves | fish from the rocks | small
farm | on | barns and fields | hens | feed the animals | busy
hill | on | the whole valley | the wind | fly kites | high
mountain | on | snow and rocks | the wind | climb to the top | steep
bridge | on | the water below | passing boats | stop and look down | narrow
lake | by | still water | frogs | swim and row | calm
river | by | smooth stones | running water | catch fish | cool
pond | by | water lilies | frogs | feed the ducks | small
sea | by | blue water | waves | look for shells | wide
bakery | in | fresh loaves | a humming oven | buy bread | warm
barn | in | bales of hay | cows | keep the hay dry | dusty
cave | in | dark walls | dripping water | light lamps | cold
castle | in | stone walls | echoes | tell old tales | old
attic | in | old boxes | mice | search for old things | dusty
workshop | in | tools and wood | hammers | build things | noisy
theatre | in | a red curtain | music | watch plays | grand
lighthouse | at | far ships | the sea | guide the ships home | tall
desert | in | sand and sky | nothing at all | ride on camels | dry
jungle | in | huge leaves | monkeys | move with care | wild
orchard | in | rows of fruit trees | bees | pick apples | sweet
playground | at | swings and slides | laughter | play together | lively
""")
)


@dataclass(frozen=True)
class Sky:
    """Weather: its adjective, how it is told of, what it does and how it makes people feel."""

    name: str
    adjective: str
    told: str
    does: str
    people: str


# name | adjective | "…" past clause | what it does | people …
SKIES = tuple(
    Sky(*row)
    for row in rows("""
rain | rainy | the rain was falling | makes the fields green | open umbrellas
snow | snowy | the snow was falling | covers the roofs | build snowmen
wind | windy | the wind was blowing | bends the trees | hold on to their hats
fog | foggy | the fog lay thick | hides the hills | walk slowly
sunshine | sunny | the sun was shining | warms the ground | sit outside
thunder | stormy | the thunder was rolling | shakes the windows | stay inside
ice | icy | the ice was gleaming | covers the ponds | skate with care
hail | cold | the hail was rattling down | drums on the roofs | run for cover
""")
)


@dataclass(frozen=True)
class Job:
    """A job: where it is done, and what for."""

    name: str
    where: str
    does: str
    tool: str


JOBS = tuple(
    Job(*row)
    for row in rows("""
baker | in a bakery | bakes bread and cakes | an oven
farmer | on a farm | grows corn and keeps cows | a tractor
gardener | in a garden | waters plants and cuts hedges | a spade
teacher | at a school | helps children to learn | a blackboard
doctor | in a hospital | helps sick people | a stethoscope
nurse | in a hospital | looks after sick people | a thermometer
vet | in a clinic | helps sick animals | a warm blanket
painter | in a studio | paints pictures | a brush
singer | on a stage | sings songs | a microphone
dancer | on a stage | dances to music | soft shoes
actor | in a theatre | plays many people | a costume
writer | at a desk | writes books | a pen
tailor | in a small shop | sews clothes | a needle
carpenter | in a workshop | builds tables and chairs | a saw
plumber | in houses | mends pipes | a wrench
potter | in a workshop | makes cups and bowls | a wheel
fisherman/fishermen | on a boat | catches fish | a net
sailor | on a ship | sails across the sea | a compass
pilot | in airplanes | flies airplanes | a headset
driver | on the roads | drives a bus | a steering wheel
cook | in a kitchen | cooks meals | a pan
waiter | in a restaurant | brings food to the tables | a tray
barber | in a barber shop | cuts hair | a pair of scissors
postman/postmen | in the streets | brings letters | a bag
firefighter | at a fire station | puts out fires | a hose
judge | in a court | decides what is fair | a book of laws
dentist | in a clinic | looks after teeth | a small mirror
librarian | in a library | looks after books | a computer
clown | in a circus | makes people laugh | a red nose
shepherd | on a hill | looks after sheep | a long stick
""")
)

FLOWERS = "rose tulip daisy lily poppy violet sunflower daffodil".split()
TREES = "oak pine birch maple willow elm ash fir".split()
BODY = (
    "hand/hands foot/feet nose/noses ear/ears eye/eyes knee/knees arm/arms leg/legs "
    "mouth/mouths toe/toes finger/fingers"
).split()
SPORTS = "football tennis swimming running skating skiing rowing cycling climbing".split()
GAMES = "chess hide-and-seek cards tag marbles hopscotch".split()
SHAPES = "circle square triangle star cube oval rectangle".split()
METALS = "iron gold silver copper tin lead".split()
ROOMS = "kitchen bedroom bathroom attic cellar hall".split()
SEASONS = "spring summer autumn winter".split()


@cache
def things() -> tuple[Entry, ...]:
    """Things as entries."""
    return tuple(
        noun(_name(t.name), "thing", t.name.split("/")[1] if "/" in t.name else None)
        for t in THINGS
    )


@cache
def animals() -> tuple[Entry, ...]:
    """Animals as entries."""
    return tuple(noun(a.name, "animal", a.plural) for a in ANIMALS)


@cache
def foods() -> tuple[Entry, ...]:
    """Foods as entries."""
    return tuple(noun(f.name, "food", f.plural, f.mass) for f in FOODS)


@cache
def places() -> tuple[Entry, ...]:
    """Places as entries."""
    return tuple(place(s.name, s.preposition) for s in SPOTS)


@cache
def skies() -> tuple[Entry, ...]:
    """Weather as entries, with told ("the rain was falling") and adj ("rainy")."""
    found = []
    for sky in SKIES:
        entry = noun(sky.name, "weather", mass=True)
        found.append(
            Entry(sky.name, "weather", {**entry.forms, "told": sky.told, "adj": sky.adjective})
        )
    return tuple(found)


@cache
def jobs() -> tuple[Entry, ...]:
    """Jobs as entries."""
    return tuple(
        noun(_name(j.name), "job", j.name.split("/")[1] if "/" in j.name else None) for j in JOBS
    )
