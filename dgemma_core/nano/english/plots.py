"""Plots: what happens in a story, as rules of the grammar, with the roles that each needs.

A is the hero by name and B a friend. Z is an animal or a beast of tales, T a thing that can be
carried, V a vehicle, F a food, P a place, W weather, J somebody with a job, X anything at all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plot:
    """A plot: its body behind the opening, how it ends, its headline, and what it calls for."""

    name: str
    roles: str
    mood: str
    headline: str
    """What the story is about to tell, ending included: "how Mia lost a key and found a friend"."""
    body: str
    opening: str = "open"


PLOTS: tuple[Plot, ...] = (
    Plot(
        name="lost_thing",
        roles="ABTP",
        mood="happy",
        headline="how {A} lost a {T} and {B} found it",
        body=(
            "[{A} had a {+looks} {T} and took it everywhere|The {+looks} {T} of {A.his} "
            "grandmother went everywhere with {A.him}]. [But one afternoon|Then, one evening,] "
            "it was gone. {A} looked [under the bed|behind the door|in every pocket] and [in the "
            "yard|on the stairs|along the path]. [?{A.he} even asked the neighbours, but nobody "
            'had seen it.] ["Have you seen my {T}?" {A} asked {B}.|At last {A} told {B} about '
            'it.] [?"Let us think," said {B}. "Where did you have it last?"] [Together they '
            "went back {P.to}|They walked {P.to} side by side], [and there it lay|and {B} saw it "
            "first], [half hidden behind a barrel|between two stones|next to an old bench]. "
            "[?{A} held the {T} tight and laughed.] <glad_end>"
        ),
    ),
    Plot(
        name="lost_for_good",
        roles="ATP",
        mood="sad",
        headline="how {A} lost a {T} and never found it again",
        body=(
            "[{A} loved one thing above all: a {+looks} {T}|Of all {A.his} things, {A} loved a "
            "{+looks} {T} the most]. [One day {A} took it {P.to}|{A} carried it {P.to} one day], "
            "and [somewhere on the way home|before the day was over] it was lost. {A} [searched "
            "until it was dark|went back and looked everywhere]. [?Every evening {A.he} went out "
            'again with a light.] [?People said, "It is only a {T}."] [But the {T} was gone|'
            "The {T} never came back]. <sad_end>"
        ),
    ),
    Plot(
        name="return_to_owner",
        roles="ATJP",
        mood="happy",
        headline="how {A} gave a {T} back and got a friend for it",
        body=(
            "[On the way {P.to}|Not far from {P.the}], {A} found a {+looks} {T}. [It was so "
            'beautiful that {A} wanted to keep it|"Finders keepers," {A} thought at first]. '
            "[?But that night {A.he} could not sleep.] [In the morning|The next day] {A} heard "
            "that the {J} had lost a {T}. [{A} ran all the way and knocked at the door|{A} took "
            'a deep breath and went to see the {J}]. "[I think this is yours.|Is this your '
            '{T}?][? I found it on the path.]" The {J} [smiled from ear to ear|could hardly '
            'believe it]. [?"This was a gift from my mother," said the {J}.] <glad_end>'
        ),
    ),
    Plot(
        name="rescue",
        roles="AZP",
        mood="happy",
        headline="how {A} saved a {Z} and was thanked for it",
        body=(
            "[{P.in} {A} heard a strange sound|A strange sound came from behind a bush]. [It was "
            "a {+little} {Z}|There sat a {+little} {Z}], [caught in an old net|with a thorn in "
            'its foot|stuck between two branches]. ["Do not be afraid," {A} said softly.|{A} '
            "came closer, step by step.] [?The {Z} trembled but kept still.] [It took a long "
            "time, but at last the {Z} was free|Slowly and carefully, {A} set it free]. [The "
            "next day there was a {+looks} pebble on {A.his} doorstep|From that day on, the {Z} "
            "came back every morning]. <glad_end>"
        ),
    ),
    Plot(
        name="shy_animal",
        roles="AZFP",
        mood="happy",
        headline="how a shy {Z} became the friend of {A}",
        body=(
            "[{P.in} lived a {Z} that was afraid of everyone|A shy {Z} lived there, and nobody "
            "could come near it]. [{A} wanted to be its friend|{A} had a plan]. On the first day "
            "{A.he} [put down {F.some} and walked away|left {F.some} on a flat stone]. [On the "
            "second day the {Z} ate a little|On the second day it watched from far away]. [?On "
            "the third day it rained, and {A} came all the same.] [By the end of the week|After "
            "many days] the {Z} ate out of {A.his} hand. <glad_end>"
        ),
    ),
    Plot(
        name="goodbye_animal",
        roles="AZP",
        mood="sad",
        headline="how {A} had to say goodbye to a {Z}",
        body=(
            "[One winter {A} found a {+little} {Z} in the snow|A {+little} {Z} came to {A.his} "
            "door one cold night]. [It was weak and hungry|It could hardly stand]. {A} [gave it "
            "a warm bed|kept it by the stove] and fed it every day. [?Soon the {Z} followed "
            "{A.him} through the whole house.] [?At night it slept at {A.his} feet.] But when "
            "spring came, the {Z} [looked out of the window for hours|grew restless]. [{A} "
            "understood|{A} knew what that meant]. {A.he} [carried it {P.to}|walked with it "
            "{P.to}] and opened {A.his} arms. [The {Z} looked back once|It stopped once and "
            "looked back], and then it was gone. <sad_end>"
        ),
    ),
    Plot(
        name="baking",
        roles="ABF",
        mood="happy",
        headline="how {A} wanted to surprise {B} with {F.gen} and everything went wrong",
        body=(
            "[It was the birthday of {B}, and there had to be {F.gen}|{A} wanted to surprise {B} "
            "with {F.gen}]. [{A} mixed, stirred and tasted|{A} washed {A.his} hands and began]. "
            "[?The kitchen smelled wonderful.] [But {A} had mixed up the salt and the sugar|But "
            '{A} forgot the time, and there was smoke]. ["Everything is ruined," said {A}.|{A} '
            'sat down on the floor and sighed.] [{B} came in and tasted it anyway. "I like '
            'it," said {B}, "because you made it."|Then {B} knocked at the door. "Let us try '
            'again together," said {B}.] [?They laughed until their bellies hurt.] <glad_end>'
        ),
    ),
    Plot(
        name="race",
        roles="ABP",
        mood="happy",
        headline="how {A} stopped in a race and won something better",
        body=(
            "[Every year there was a race {P.to}|That summer all the children raced {P.to}], and "
            "{A} [wanted to win it|had trained for weeks]. [?{B} was the fastest of them all.] "
            '["Ready, steady, go!"|The bell rang, and off they went.] {A} ran [like the wind|'
            "as fast as {A.he} could]. [Halfway there {B} fell|Then, at the last corner, {B} "
            "fell] and [held {B.his} knee|could not get up]. [{A} could see the finish, but "
            '{A.he} turned around|{A} stopped at once]. "[Lean on me|Take my hand|Come, we will '
            'walk together]," said {A}. [?They came in last, and everybody clapped.] <glad_end>'
        ),
    ),
    Plot(
        name="apprentice",
        roles="AJD",
        mood="happy",
        headline="how {A} learned to mend a {D}",
        body=(
            "[The {D} of {A} was broken|One day {A} dropped {A.his} {+looks} {D}, and it broke]. "
            '[{A} took it to the {J}|The {J} next door looked at it for a long time]. "I [will '
            'not|could] mend it for you," said the {J}, "but I will show you how." [Day after '
            "day {A} came and watched|So {A} came back every afternoon]. [The first try went "
            "wrong.[? The second try was no better.]|At first nothing worked.] [But {A} did not "
            'give up|"Again," said the {J} with a smile]. [On the seventh day the {D} was as '
            "good as new|At the end of the month {A} held the {D} up, and it was whole]. "
            "<glad_end>"
        ),
    ),
    Plot(
        name="picnic",
        roles="ABFP",
        mood="happy",
        headline="how bad weather made a good day for {A} and {B}",
        body=(
            "{A} and {B} [had planned a picnic for weeks|packed a basket with {F.gen}]. [They "
            "had just sat down {P.in}|They came {P.to} at noon and spread out a blanket] when "
            '[the first drops fell|a storm began]. ["Oh no!" cried {B}.|"Quick, run!" cried '
            "{A}.] They [hid under a big tree|crept under an old table] with {F.some} between "
            "them. [?Water ran down their necks, and they did not mind.] [They told each other "
            "stories until the sky was blue again|{A} began to sing, and {B} joined in]. "
            "<glad_end>"
        ),
    ),
    Plot(
        name="spoiled_trip",
        roles="ABP",
        mood="sad",
        headline="how a long-awaited day went wrong for {A}",
        body=(
            "[For a month {A} had looked forward to this day|{A} had counted the days]: {B} was "
            "coming, and they would go {P.to} together. [{A} waited at the window from early "
            "morning|{A} stood at the gate with a packed bag]. [?One hour passed, and then "
            'another.] [At noon a letter came|At last the telephone rang]. "[I am ill|I cannot '
            'come]," [wrote|said] {B}. [?"Please go without me."] {A} [unpacked the bag|put '
            "the shoes back under the bed] and [said nothing|sat on the steps]. <sad_end>"
        ),
    ),
    Plot(
        name="gift",
        roles="ABT",
        mood="happy",
        headline="how {A} gave away a {T} and was happier than before",
        body=(
            "[{A} had saved every coin for a {T}|All year {A} saved money for a {T}]. [At last "
            "{A} could buy it|On {+day} {A} ran to the shop and came back with it]. [?It was "
            "even better than in the window.] [But {B} had lost everything in a fire|But {B} was "
            "ill and had nothing to play with]. [{A} thought about it all night|For two days {A} "
            "thought about it]. Then {A.he} [wrapped the {T} in paper and rang the bell of {B}|"
            'put the {T} into the hands of {B}]. "[For me|Really]?" asked {B}. [?"For you," '
            "said {A}.] <glad_end>"
        ),
    ),
    Plot(
        name="attic",
        roles="ATP",
        mood="happy",
        headline="how a {T} in an old box led {A} to a treasure",
        body=(
            "[On a rainy day {A} climbed up to look at the old boxes|Behind an old door {A} "
            "found a box]. [Under dust and paper lay a {+looks} {T}|Inside lay a {+looks} {T}], "
            'and [a note was tied to it|someone had hidden a note in it]. "[Go {P.to} and count '
            'to ten|Look {P.in}]," said the note. [?{A.his} heart beat fast.] {A} [went there '
            "at once|did as the note said]. [Under the third stone was a small chest|There, in a "
            "hollow, was a second box]. [It held old pictures of {A.his} grandparents, young and "
            "laughing|It was full of letters from long ago]. <glad_end>"
        ),
    ),
    Plot(
        name="quarrel",
        roles="ABD",
        mood="happy",
        headline="how {A} and {B} fought about a {D} and made up",
        body=(
            "{A} and {B} [were best friends|did everything together], until [both wanted the "
            'same {D}|a {D} came between them]. ["It is mine!" cried {A}. "No, mine!" cried '
            "{B}.|{A} pulled at one side, and {B} pulled at the other.] [Then the {D} broke in "
            "two|There was a crack, and both stood still]. [?For three days they did not speak.] "
            "[{A} looked at the broken {D} and felt ashamed|Without {B}, nothing was fun]. [On "
            'the fourth day {A} went over and said sorry|"I am sorry," said {A} at last]. '
            '[?"I am sorry too," said {B}.] [They mended the {D} with glue|Together they '
            "mended the {D}]. <glad_end>"
        ),
    ),
    Plot(
        name="night_noise",
        roles="AZ",
        mood="happy",
        headline="how a noise in the night was only a {Z}",
        body=(
            "[One night {A} woke up|In the middle of the night {A} sat up in bed]. [Something "
            'was scratching at the wall|There were steps on the roof]. [?"Who is there?" {A} '
            "whispered.] [Nobody answered|The noise stopped, and then it began again]. [{A} took "
            "a light and opened the door|With a beating heart {A} went down the stairs]. [Two "
            "round eyes looked up at {A.him}|Something moved in the dark]. It was [only a {Z}|"
            "nothing but a {Z}], [cold and wet|looking for a dry place to sleep]. [{A} laughed "
            'out loud|"You gave me a fright," said {A}]. [?The {Z} was allowed to stay until '
            "morning.] <glad_end>"
        ),
    ),
    Plot(
        name="planting",
        roles="ANJ",
        mood="happy",
        headline="how {A} waited a whole year for {N.gen}",
        body=(
            'The {J} gave {A} [a tiny seed|a paper bag with one seed in it]. "[If you are '
            'patient|If you take good care of it], it will bring you {N.gen} one day." [{A} put '
            "it into the ground that same evening|{A} dug a hole and laid the seed in it]. "
            "[Every morning {A} brought water|{A} watered it day after day]. [?For weeks nothing "
            'happened.] ["Nothing will ever grow here," said the neighbours.|{A} almost gave '
            "up.] [Then, one morning, there was something green|But in spring a green leaf came "
            "up]. [?It grew as high as {A.his} knee, then as high as {A.his} nose.] [By the next "
            "summer there were {N.gen} for the whole street|A year later {A} brought the {J} a "
            "basket full of {N.gen}]. <glad_end>"
        ),
    ),
    Plot(
        name="moving_away",
        roles="ABP",
        mood="sad",
        headline="how {B} moved away and {A} stayed behind",
        body=(
            "{A} and {B} met {P.in} every day after school. [They knew every stone there|It was "
            "their place, and no one else knew about it]. [?They had carved their names into a "
            'board.] [One evening {B} was very quiet|Then {B} came with bad news]. "We are '
            'moving [to another city|far away]," {B.he} said. [{A} did not know what to say|For '
            "a long time neither of them spoke]. [On {+day} a big truck came|The truck came at "
            "the end of the week]. [?{B} waved until the road bent.] {A} went {P.to} alone. "
            "<sad_end>"
        ),
    ),
    Plot(
        name="food_thief",
        roles="AZFP",
        mood="happy",
        headline="how {A} caught a {Z} that stole {F.gen}",
        body=(
            "Every night [somebody stole {F.gen} from the kitchen|some of the {F.gen} went "
            'missing], and nobody knew who it was. ["I will find out," said {A}.|{A} decided '
            "to keep watch.] [{A.he} sprinkled flour on the floor|{A.he} hid behind a curtain "
            "and waited]. [?The clock struck ten, eleven, twelve.] [In the morning there were "
            "small prints that led {P.to}|A small shadow came in through the window, and {A} "
            "followed it {P.to}]. [There sat a fat {Z} with a very full belly|There lay a {Z}, "
            'asleep among the crumbs]. [?It did not even look sorry.] ["So it was you!" said '
            "{A} and had to laugh.|{A} could not be angry.] <glad_end>"
        ),
    ),
    Plot(
        name="broken_thing",
        roles="AJD",
        mood="happy",
        headline="how {A} broke a {D} and told the truth",
        body=(
            "The {J} had a {D} [that nobody was allowed to touch|that was worth more than a "
            "house]. [{A} only wanted to look at it|{A} touched it all the same], and [it fell "
            "to the ground|it slipped out of {A.his} hands]. [?There was nobody around. Nobody "
            'had seen it.] ["I could just run away," thought {A}.|{A} felt hot and cold.] But '
            '{A.he} [stayed|waited for the {J} to come back]. "[I broke your {D}|It was me]," '
            '{A} said, "[and I am sorry|and I want to make it good]." [The {J} was silent for '
            'a while|The {J} looked at {A.him} for a long time]. "[A {D} can be mended|That was '
            'brave]," said the {J}. [?"A lie cannot."] <glad_end>'
        ),
    ),
    Plot(
        name="light_in_storm",
        roles="AJP",
        mood="happy",
        headline="how {A} guided the {J} home with a lantern",
        body=(
            "[A storm came up in the evening|It was a wild and stormy night], and the {J} [had "
            "not come home|was still out {P.in}]. [?People stood at their windows and worried.] "
            "[{A} could not sit still|{A} had an idea]. {A.he} [took a lantern from its hook|lit "
            "the big lantern]. [Then {A.he} climbed onto the roof and waved it|{A.he} held it up "
            "high until {A.his} arms hurt]. [?The wind pulled at {A.his} coat.] [At midnight "
            "somebody called|At last there was an answer from the dark]. [It was the {J}, wet "
            'and tired|The {J} came up the path, wet to the bones]. "I saw your light," said '
            "the {J}. <glad_end>"
        ),
    ),
    Plot(
        name="three_wishes",
        roles="AGPT",
        mood="happy",
        headline="how a {G} gave {A} one wish",
        body=(
            "[{P.in} {A} met a {G} that could speak|A {G} stepped in front of {A} and began to "
            'speak]. "[You have a kind heart|You let me pass yesterday]," it said. "[You have '
            'one wish|Wish for one thing]." [{A} thought of gold and of castles|{A} thought for '
            'a long time]. [?The {G} waited and did not say a word.] ["I wish for a {T} for my '
            'brother," said {A}.|"I would like a {T}, so that I can share it," said {A}.] '
            '[The {G} nodded|"A good wish," said the {G}]. [When {A} came home, the {T} stood '
            "on the table|There was a flash, and the {T} lay in the grass]. <glad_end>"
        ),
    ),
    Plot(
        name="big_friend",
        roles="AGP",
        mood="happy",
        headline="how {A} made friends with a {G} that everyone feared",
        body=(
            "[Everybody was afraid of the {G}|People locked their doors when the {G} came]. [It "
            "was big, it was loud, and it lived near {P.the}|It lived all alone near {P.the}]. "
            "[?Some said that it ate children for breakfast.] [{A} wanted to know the truth|But "
            "{A} was more curious than afraid]. {A.he} [went {P.to} and waited|walked {P.to} "
            'with a loaf of bread]. [The {G} was crying|Big tears ran down its face]. "[Nobody '
            'ever talks to me|I am so alone]," it said. ["Then talk to me," said {A}.|{A} sat '
            "down beside it and listened.] [?They talked until the moon was high.] <glad_end>"
        ),
    ),
    Plot(
        name="sore_tooth",
        roles="AGJ",
        mood="happy",
        headline="how {A} helped a {G} with a toothache",
        body=(
            "[For three nights nobody could sleep, because the {G} was roaring|A loud roar woke "
            'the whole town: it was the {G}]. ["Send it away!" the people cried.|The {J} ran '
            "to and fro and did not know what to do.] [{A} was the only one who asked what was "
            'wrong|"Does something hurt?" {A} asked the {G}]. [It opened its mouth, and there '
            "was a black tooth|The {G} nodded and pointed at its cheek]. [?{A} could hear "
            "{A.his} own heart.] [{A} tied a string to the tooth, and the {J} pulled|Together "
            "with the {J}, {A} pulled and pulled]. [Out it came|There was a pop, and it was "
            'out]. "[Thank you|At last]," said the {G}, and [everyone clapped|the night was '
            "quiet again]. <glad_end>"
        ),
    ),
    Plot(
        name="last_of_them",
        roles="AGP",
        mood="sad",
        headline="how {A} saw the last {G} go",
        body=(
            "[Once there had been many of them, but now only one {G} was left|It was the last "
            "{G} in the land]. [It lived {P.in}, and only {A} knew it|{A} used to visit it "
            "{P.in}]. [?It told {A} about the old days.] [?{A} brought it water and company.] "
            '["I must leave," it said one evening. "There is nobody here like me."|One '
            'evening it lifted its old head and said goodbye.] [{A} begged it to stay|"Please '
            'stay," said {A}], but [it shook its head|it had made up its mind]. [At dawn it was '
            "gone|In the morning only its tracks were left]. <sad_end>"
        ),
    ),
    Plot(
        name="animal_hero",
        roles="AZF",
        mood="happy",
        headline="how a {Z} called {A} learned to share {F.gen}",
        body=(
            "[{A.he} had {F.gen} for the whole winter|{A.his} home was full of {F.gen}] and "
            '[gave nothing to anyone|never shared a bite]. "[It is all mine|What is mine is '
            'mine]," {A} [used to say|said every day]. [Then a flood came and took everything '
            "away|One night the roof fell in, and everything was spoiled]. [?{A} sat in the cold "
            "and was ashamed.] [But the neighbours came, one after the other|In the evening "
            'there was a knock]. [Each of them brought a little|"Take some of ours," the '
            "others said]. [?{A} had never felt so small.] From then on, {A.his} door stood open "
            "to everyone. <glad_end>"
        ),
        opening="open_beast",
    ),
    Plot(
        name="animal_alone",
        roles="AZP",
        mood="sad",
        headline="how a {Z} called {A} could not find the way home",
        body=(
            "[{A.he} wanted to see the world|One day {A.he} followed a butterfly], and so {A.he} "
            "went [farther than ever before|deep into unknown land]. [?Everything smelled new "
            "and exciting.] [When night came, {A} did not know where {A.he} was|Then it grew "
            "dark, and nothing looked familiar]. {A} [called, but only the wind answered|ran "
            "this way and that way]. [?The stars looked very far away.] At last {A.he} came "
            "{P.to} and lay down there. <sad_end>"
        ),
        opening="open_beast",
    ),
    Plot(
        name="trading",
        roles="ATFJ",
        mood="happy",
        headline="how {A} traded a {T} and made everyone happy",
        body=(
            "{A} had a {T} but [nothing to eat|no use for it]. [On the road {A.he} met the {J}|"
            "At the next corner stood the {J}], who [needed a {T} badly|had been looking for a "
            '{T} all day]. "I will give you {F.some} for it," said the {J}. [?They shook '
            "hands.] [{A} walked on and met an old woman, who was hungry|Soon {A} saw a child "
            "crying on the steps]. [{A} gave away half of it|So {A.he} gave away the {F}]. "
            '[?"Now I have nothing," thought {A}, "but I feel rich."] [That evening the {J} '
            "invited {A} to dinner|In the evening there was a knock, and the {J} stood there "
            "with a full basket]. <glad_end>"
        ),
    ),
    Plot(
        name="finder_animal",
        roles="AZTJ",
        mood="happy",
        headline="how a {Z} brought back the {T} of the {J}",
        body=(
            '["Where is my {T}?" cried the {J}.|The {J} had lost a {T} and could not work any '
            "more.] [Everybody helped to search, and {A} did too|{A} promised to help]. [?They "
            "looked in every corner and under every stone.] [Only the {Z} did not care|The {Z} "
            "of the neighbours sat on the wall and watched]. [But then {A} saw something shine "
            "between its feet|Then it jumped down and ran off, and {A} ran after it]. [There was "
            'the {T}|Under an old tree lay the {T}, safe and sound]. "[What a clever {Z}|Well '
            'done]," said the {J}. [?The {Z} got a big supper that night.] <glad_end>'
        ),
    ),
    Plot(
        name="waiting_letter",
        roles="ABP",
        mood="happy",
        headline="how {A} waited for a letter from {B}",
        body=(
            "{B} had gone [over the sea|far away] and had promised to write. [Every day {A} ran "
            "{P.to} and asked for the post|Each morning {A} waited {P.in} for the postman]. "
            '["Nothing today," said the postman.|But there was nothing, day after day.] '
            '[?Autumn came, and then winter.] [?"{B} has forgotten me," thought {A}.] Then, on '
            'a {+day}, [it was not a letter that came|there was a knock]. It was {B}. "[I '
            'wanted to bring my letters myself|A letter would have been too slow]," said {B}. '
            "<glad_end>"
        ),
    ),
    Plot(
        name="save_place",
        roles="ABPJ",
        mood="happy",
        headline="how {A} and {B} saved a place that they loved",
        body=(
            "[One morning there was a sign at the gate|The {J} brought the news]: {P.the} was to "
            'be [closed|sold]. ["That cannot be," said {A}.|{A} and {B} looked at each other.] '
            "[They went from door to door and asked for help|They painted posters and hung them "
            "up everywhere]. [?At first people only shook their heads.] [Then the {J} gave the "
            "first coin|The {J} was the first to help], and [others followed|soon the whole "
            "street helped]. [After a month they had enough|On {+day} the sign was taken down]. "
            "<glad_end>"
        ),
    ),
    Plot(
        name="vehicle_repair",
        roles="AVJ",
        mood="happy",
        headline="how {A} got an old {V} going again",
        body=(
            "[Behind the house stood a {V} that had not moved for years|The {J} owned an old {V} "
            'that nobody used]. ["Can we make it go again?" asked {A}.|{A} could not stop '
            'looking at it.] ["If you help me," said the {J}.|The {J} laughed and fetched some '
            "tools.] [They cleaned it, oiled it and painted it|All summer they worked on it "
            "together]. [?Twice they almost gave up.] [On the first day of autumn the {V} moved|"
            'Then came the great day, and the {V} moved as if it were new]. [?"We did it!" '
            "cried {A}.] <glad_end>"
        ),
    ),
    Plot(
        name="vehicle_trip",
        roles="ABVP",
        mood="happy",
        headline="how {A} and {B} took a {V} and got lost",
        body=(
            "{A} and {B} [took a {V} and set off|found a {V} and set off]. [They wanted to go "
            '{P.to}|"Let us go {P.to}," said {B}]. [?They sang all the way.] [But they had '
            'forgotten the map|At the first fork they went the wrong way]. ["Left," said {A}. '
            '"Right," said {B}.|Every road looked the same.] [?By noon they were hungry and '
            "cross.] [Then they stopped and asked an old man|At last {A} saw smoke behind a "
            "hill]. [It was not the place that they had looked for, but it was better|They had "
            "gone in a circle, and there was home]. <glad_end>"
        ),
    ),
    Plot(
        name="vehicle_gone",
        roles="AVP",
        mood="sad",
        headline="how {A} watched a {V} leave for the last time",
        body=(
            "[All {A.his} life {A} had watched the {V} go by|Every morning the old {V} came past "
            "{P.the}]. [?{A} always waved, and somebody always waved back.] [Then a notice was "
            "put up|One day the news came]: the {V} was [too old|to be broken up]. [On the last "
            "day {A} stood there with a flower|{A} asked if it could be saved, but nobody "
            "listened]. [The {V} came, slower than ever|It came for the last time], and then it "
            "was gone. <sad_end>"
        ),
    ),
    Plot(
        name="dream_of",
        roles="AX",
        mood="happy",
        headline="how {A} dreamed of a {X} and woke up with a plan",
        body=(
            "[One night {A} dreamed of a {+looks} {X}|In a dream {A} saw a {X}, big and bright]. "
            '[It called {A.him} by name|"Come and find me," it seemed to say]. [In the morning '
            "{A} told everyone about it|When {A} woke up, {A.his} heart was beating fast]. "
            '[?"It was only a dream," they said.] [{A} drew the {X} on a sheet of paper, so as '
            "not to forget it|{A} read every book about it that {A.he} could find]. [?Years went "
            "by.] [When {A} was grown up, {A.he} stood before a real {X}|And one day there it "
            "was: a {X}, just as in the dream]. <glad_end>"
        ),
    ),
    Plot(
        name="drawing_of",
        roles="ABX",
        mood="happy",
        headline="how {A} drew a {X} in a way of {A.his} own",
        body=(
            '[At school everybody was asked to draw a {X}|"Today we draw a {X}," said the '
            "teacher]. [{B} drew a perfect one|The {X} of {B} was neat and clean]. The one that "
            "{A} drew [looked rather strange|was green and had a face]. [?Some children "
            "laughed.] [{A} wanted to hide the paper|{A} turned the paper over]. [But {B} looked "
            'at it for a long time|Then {B} came and looked]. "[Nobody else has one like that|'
            'Yours is alive]," said {B}. [?The picture was hung up by the door, where everyone '
            "could see it.] <glad_end>"
        ),
    ),
    Plot(
        name="search_for",
        roles="AXP",
        mood="happy",
        headline="how {A} looked for a {X} and found it at home",
        body=(
            '{A} had never seen a {X}. ["There must be one somewhere," {A.he} said.|{A} wanted '
            "to see one more than anything.] [{A.he} asked {P.in}, but nobody could help|{A.he} "
            'went {P.to} and looked around]. [?{A.he} walked up hills and down again.] ["A '
            '{X}?" said a stranger. "You will know it when you see it."|People pointed this '
            "way and that way.] [Tired, {A} turned back|At last {A} gave up and went home]. [And "
            "there, right behind the house, was a {X}|There, before {A.his} own door, was a "
            "{X}]. [?It had been there all the time.] <glad_end>"
        ),
    ),
    Plot(
        name="only_once",
        roles="AXB",
        mood="sad",
        headline="how {A} saw a {X} only once",
        body=(
            "[Only once in {A.his} life did {A} see a {X}|{A} was seven years old when {A.he} "
            'saw a {X}]. [?It was more beautiful than any picture.] ["Look!" {A} wanted to '
            "call, but nobody was there. A moment later it was gone|{A} ran home to fetch {B}. "
            'When they came back, it was gone]. [{B} did not believe a word|"You made it up," '
            "said {B}]. [?Again and again {A} went back to that place.] <sad_end>"
        ),
    ),
)

RULES: dict[str, tuple[str, ...] | str] = {
    "open": (
        "[Once upon a time|Long ago|Not so long ago], there [was|lived] a {+nature} {A.kid} "
        "[named|called] {A}.",
        "{A} was a {+nature} {A.kid} [of {+number}|with {+looks_hair} hair|who laughed a lot].",
        "[This is the story of|Let me tell you about] a {+nature} {A.kid} [named|called] {A}.",
        "[Everybody knew {A}|Everyone liked {A}], the {+nature} {A.kid} [from the corner house|"
        "with the loud laugh|who lived by the well].",
        "[In a small town|In a house with a red roof|At the end of a long road] lived a {A.kid} "
        "[named|called] {A}.",
        "[One {+season} morning|Early on {+day}|One {+season} evening], {A} [was in a {+mood2} "
        "mood|felt {+mood}].",
        "[It was a {+season} day like any other|It all began in {+month}], [and {A} felt {+mood}|"
        "and {A} was {+mood}].",
        "{A} was [{+age} years old|the youngest of {+number} children] and [very {+nature}|"
        "always {+mood}].",
    ),
    "open_beast": (
        "[Once upon a time|Long ago], there [was|lived] a {+little} {Z} [named|called] {A}.",
        "{A} was a {+little} {Z} [with a big heart|with big plans|who knew no fear].",
        "[In an old tree|Behind the hill|Under the roots of an oak] lived a {Z} [named|called] "
        "{A}.",
        "[This is the story of|Let me tell you about] a {+little} {Z} [named|called] {A}.",
    ),
    "sky": (
        "[Outside,|All around,|Everywhere] {W.told}.",
        "{W.told}, [and the streets were empty|and nobody was outside|but {A} did not mind].",
        "The {W} had come [in the night|early that year|and would not go away].",
        '["What {W}!" said {A}.|Everyone was talking about the {W}.|There had never been such '
        "{W}.]",
    ),
    "more": (
        "{A.he} liked [old songs|quiet mornings|the smell of rain|stories about the sea] and "
        "[could whistle very well|knew every path in the land|was afraid of nothing but thunder|"
        "never said no to a game].",
        "[Nobody|Not even a clock] could wait as patiently as {A}, [except on rainy days|when "
        "there was something to wait for].",
        "[People often said|The neighbours liked to say] that {A} [asked too many questions|had "
        "a head full of dreams|would go far one day].",
        "{A.his} favourite colour was {+colour}, and {A.his} favourite day was {+day}.",
        "[In the evening|After supper] {A} used to [look at the stars|sit on the steps and think|"
        "count the lights in the valley].",
        "{A} had [a small secret, but nobody knew about it|one great wish, but nobody knew about "
        "it|a good heart, and this story shows it].",
    ),
    "later": (
        "[Later|Years later], {A} told {A.his} [children|grandchildren] about it, [and they "
        "wanted to hear it again and again|and they never grew tired of it].",
        "[The story went from mouth to mouth|Soon the whole town knew the story], and [some "
        "people tell it to this day|each one told it in a different way].",
        "[If you think that this cannot be true|If you do not believe it], [ask the old people "
        "in the town|go there and see for yourself].",
        "[Nobody could have known it that morning.|Who would have thought so that morning?]",
    ),
    "theme": (
        "[That is what {H} means|This is what people call {H}|It was a lesson in {H}].",
        "[Since then {A} has known what {H} is|So {A} learned something about {H}].",
    ),
    "glad_end": (
        "[That evening|That night] {A} [fell asleep with a smile|was happier than ever before].",
        "[It was the best day of the year|It was a day to remember], and {A} [never forgot it|"
        "told everyone about it].",
        "[From that day on|Ever since], {A} [has been a little braver|has believed in small "
        "wonders|has known what matters].",
        "{A} [went home singing|danced all the way home|smiled all evening].",
        "[And if you ask {A} today|If you meet {A} one day], {A.he} will [tell you the same "
        "story|still smile about it].",
        "[{A} would not have traded that day for all the gold in the world|There was no happier "
        "home that night].",
        "[And that was only the beginning|And so everything turned out well].",
        '"[This was a good day|What a day]," [said|thought] {A}[?, and it was true].',
    ),
    "sad_end": (
        "[That night {A} cried a little|For many nights {A} could not sleep|That evening {A} did "
        "not want any supper].",
        "[{A} still thinks of it|Even today {A} thinks of it] when [the evenings grow dark|it "
        "rains].",
        "[The house was very quiet that evening|Nothing was the same after that].",
        "[Some things do not come back, and {A} knew it now|Not every story ends well, and this "
        "one did not].",
        "{A} [wiped away a tear and went home|looked at the sky and said nothing].",
        "[It was a long and lonely winter|It was the saddest day of the year], and {A} [sat at "
        "the window for hours|missed every bit of what was lost].",
    ),
}

EXTRA_WORDS = {
    "looks_hair": "red black brown curly short long wild".split(),
    "age": "six seven eight nine ten eleven twelve".split(),
    "mood2": "good cheerful strange quiet dreamy".split(),
}
