# SPDX-License-Identifier: Apache-2.0
"""Facts about words: opposites, words of the same meaning, plurals, past forms, and words short enough to spell.

A word stands in one pair of opposites and in one pair of synonyms at most, so that every question has one answer.
"""

from jaxpost.data.nano.world import KINDS, MEALS, PLACES, THINGS, rows, words

OPPOSITES = rows("""
    hot cold
    big small
    old young
    fast slow
    long short
    high low
    hard soft
    light heavy
    dark bright
    wet dry
    full empty
    clean dirty
    open closed
    rich poor
    loud quiet
    strong weak
    thick thin
    wide narrow
    deep shallow
    early late
    near far
    happy sad
    good bad
    true false
    right wrong
    first last
    up down
    in out
    on off
    day night
    summer winter
    north south
    east west
    black white
    buy sell
    give take
    push pull
    win lose
    start stop
    come go
    love hate
    laugh cry
    ask answer
    rise fall
    friend enemy
    sharp blunt
    smooth rough
    kind cruel
    cheap expensive
    safe dangerous
    easy difficult
    same different
    always never
    before after
    above below
    inside outside
    front back
    awake asleep
    remember forget
    float sink
    more less
    many few
    all none
    brave afraid
    nice nasty
""")
SYNONYMS = rows("""
    big large
    small little
    fast quick
    happy glad
    sad unhappy
    smart clever
    begin start
    end finish
    shut close
    shout yell
    speak talk
    jump leap
    sick ill
    rich wealthy
    present gift
    stone rock
    road street
    hard difficult
    easy simple
    scared afraid
    tired sleepy
    tasty delicious
    pretty beautiful
    strange odd
    loud noisy
    quiet calm
    wet damp
    brave bold
    friend pal
    child kid
    mother mum
    father dad
    rabbit bunny
    fix repair
    choose pick
    buy purchase
    reply answer
    cold chilly
    angry cross
    funny silly
    home house
    right correct
    wrong incorrect
    shop store
    evening dusk
    sea ocean
    boat ship
    woods forest
    thin slim
    keep hold
""")

PLURALS = rows("""
    mouse mice
    goose geese
    foot feet
    child children
    knife knives
    leaf leaves
    wolf wolves
    man men
    woman women
    tooth teeth
    sheep sheep
    fish fish
    puppy puppies
    lady ladies
    berry berries
    baby babies
    city cities
    story stories
    box boxes
    bus buses
    fox foxes
    dish dishes
    peach peaches
    cherry cherries
    potato potatoes
    tomato tomatoes
    dress dresses
    bench benches
    daisy daisies
    day days
    toy toys
    key keys
    monkey monkeys
    donkey donkeys
    brush brushes
    glass glasses
    half halves
    shelf shelves
    loaf loaves
    branch branches
    beach beaches
    match matches
""") + tuple(
    (word, word + "s")
    for word in words("""
        cat dog hen duck cow pig goat horse owl bee ant bear lion tiger camel whale shark snake apple pear plum
        grape lemon banana carrot onion bean ball book cup hat doll kite lamp bag drum pen coin ring spoon flag
        shell stick rope bell car train bike boat ship plane truck shirt coat shoe sock scarf glove belt hand head
        nose ear eye arm leg chair table bed house garden farm park school shop tree rose king queen
    """)
)

PAST = rows("""
    go went
    eat ate
    see saw
    give gave
    take took
    run ran
    sing sang
    swim swam
    write wrote
    read read
    buy bought
    sell sold
    find found
    lose lost
    make made
    come came
    fall fell
    fly flew
    drink drank
    sleep slept
    bring brought
    think thought
    tell told
    say said
    know knew
    grow grew
    sit sat
    stand stood
    win won
    draw drew
    ride rode
    break broke
    speak spoke
    keep kept
    leave left
    feel felt
    build built
    send sent
    hold held
    hide hid
    dig dug
    meet met
    catch caught
    teach taught
    throw threw
""") + tuple(
    (word, word + ("d" if word.endswith("e") else "ed"))
    for word in words("""
        walk talk jump play help look cook wash paint plant open close call ask answer laugh smile dance love hate
        like want need move live work start finish watch listen wait clean push pull climb visit follow turn bake
        kick pick repair shout yell bark count rest rain snow
    """)
)

# Words short enough to be spelled, reversed, counted and sorted letter by letter.
SHORT_WORDS = tuple(
    sorted(
        {
            word
            for group in (*KINDS.values(), THINGS, PLACES, MEALS, *zip(*OPPOSITES, strict=True))
            for word in group
            if 3 <= len(word) <= 5 and word.islower() and word.isalpha()
        }
    )
)
