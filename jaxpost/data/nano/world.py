# SPDX-License-Identifier: Apache-2.0
"""The nano world: a few hundred words of simple English and what is true about them.

Tables are written as text, one row a line, so that they read as tables; an underscore stands for a blank.
A fact that is not in a table is false: an animal that is not listed as able to fly cannot fly.
"""

from typing import NamedTuple


def words(text: str) -> tuple[str, ...]:
    return tuple(word.replace("_", " ") for word in text.split())


def rows(text: str) -> tuple[tuple[str, ...], ...]:
    return tuple(words(line) for line in text.strip().splitlines())


def a(phrase: str) -> str:
    """The phrase with its article: a cat, an owl."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


class Animal(NamedTuple):
    name: str
    size: int
    kind: str
    legs: int
    can: tuple[str, ...]
    young: str
    home: str


ANIMALS = tuple(
    Animal(name, int(size), kind, int(legs), tuple(can.split(",")), young, home)
    for name, size, kind, legs, can, young, home in rows("""
        ant       1  insect   6  climb            -         garden
        bee       1  insect   6  fly              -         garden
        beetle    1  insect   6  climb            -         forest
        moth      1  insect   6  fly              -         garden
        wasp      1  insect   6  fly              -         garden
        bat       2  mammal   2  fly              -         cave
        mouse     2  mammal   4  run,climb        -         house
        robin     2  bird     2  fly,sing         chick     garden
        crow      3  bird     2  fly              chick     forest
        parrot    3  bird     2  fly,talk         chick     forest
        owl       3  bird     2  fly              owlet     forest
        duck      3  bird     2  fly,swim         duckling  lake
        hen       3  bird     2  run              chick     farm
        goose     4  bird     2  fly,swim         gosling   lake
        swan      4  bird     2  fly,swim         cygnet    lake
        eagle     4  bird     2  fly              eaglet    mountain
        penguin   4  bird     2  swim             chick     sea
        trout     3  fish     0  swim             -         river
        salmon    4  fish     0  swim             -         river
        cod       4  fish     0  swim             -         sea
        shark     7  fish     0  swim             pup       sea
        lizard    2  reptile  4  run,climb        -         desert
        snake     3  reptile  0  swim,climb       -         desert
        turtle    3  reptile  4  swim             -         sea
        rabbit    3  mammal   4  run              -         field
        squirrel  2  mammal   4  run,climb        -         forest
        cat       3  mammal   4  run,climb        kitten    house
        dog       4  mammal   4  run,swim         puppy     house
        fox       4  mammal   4  run              cub       forest
        monkey    4  mammal   4  run,climb        -         jungle
        goat      5  mammal   4  run,climb        kid       mountain
        sheep     5  mammal   4  run              lamb      farm
        pig       5  mammal   4  run              piglet    farm
        wolf      5  mammal   4  run              cub       forest
        tiger     6  mammal   4  run,swim         cub       jungle
        bear      6  mammal   4  run,swim,climb   cub       forest
        donkey    6  mammal   4  run              foal      farm
        cow       7  mammal   4  run              calf      farm
        horse     7  mammal   4  run              foal      farm
        camel     7  mammal   4  run              -         desert
        dolphin   6  mammal   0  swim             -         sea
        elephant  9  mammal   4  swim             -         jungle
        whale     9  mammal   0  swim             -         sea
    """)
)
ABILITIES = words("fly swim climb run")
ANIMAL_KINDS = words("insect bird fish reptile mammal")
HOMES = tuple(sorted({animal.home for animal in ANIMALS}))

THING_SIZES = {
    name: int(size)
    for name, size in rows("""
        coin 1
        ring 1
        button 1
        needle 1
        key 1
        pen 2
        spoon 2
        cup 2
        ball 3
        book 3
        lamp 4
        drum 4
        chair 5
        bike 5
        table 6
        bed 6
        car 7
        truck 8
        bus 8
        house 9
        ship 9
        castle 9
    """)
}
SIZES = THING_SIZES | {animal.name: animal.size for animal in ANIMALS}

USES = rows("""
    knife     cut_bread
    pen       write_a_letter
    spoon     eat_soup
    cup       drink_tea
    key       open_a_door
    broom     sweep_the_floor
    brush     paint_a_wall
    hammer    hit_a_nail
    saw       cut_wood
    lamp      light_a_room
    clock     tell_the_time
    umbrella  stay_dry
    oven      bake_a_cake
    soap      wash_hands
    towel     dry_hands
    needle    sew_a_shirt
    ladder    reach_the_roof
    bed       sleep_at_night
    boat      cross_the_lake
    net       catch_fish
    camera    take_pictures
    phone     call_a_friend
    comb      fix_the_hair
    fridge    keep_milk_cold
    rope      tie_a_horse
    basket    carry_eggs
    map       find_the_way
    shovel    dig_a_hole
    ball      play_a_game
    book      read_a_story
    kettle    boil_water
    pot       cook_rice
    coat      keep_warm
    stamp     send_a_letter
    bucket    carry_water
    pillow    rest_the_head
    mirror    see_a_face
    axe       chop_a_tree
""")

JOBS = rows("""
    baker      bakes_bread            bakery
    teacher    teaches_children       school
    farmer     grows_corn             farm
    doctor     helps_sick_people      hospital
    nurse      cares_for_patients     hospital
    cook       makes_meals            kitchen
    pilot      flies_planes           airport
    driver     drives_a_bus           station
    fisher     catches_fish           lake
    painter    paints_pictures        studio
    singer     sings_songs            theatre
    actor      plays_roles            theatre
    writer     writes_books           office
    builder    builds_houses          street
    gardener   plants_flowers         garden
    tailor     sews_clothes           shop
    dentist    fixes_teeth            clinic
    sailor     sails_ships            harbour
    clown      makes_people_laugh     circus
    waiter     serves_food            cafe
    barber     cuts_hair              shop
    postman    brings_letters         street
    miner      digs_for_coal          mine
    guard      watches_the_gate       castle
    shepherd   looks_after_sheep      field
    vet        heals_animals          clinic
    judge      decides_cases          court
    clerk      writes_bills           office
    hunter     follows_deer           forest
    keeper     feeds_lions            zoo
""")

GIRLS = words("Anna Emma Lily Mia Rosa Sara Nina Lucy Eva Kate Zoe Ruth Amy Ida Jane Vera")
BOYS = words("Tom Ben Max Leo Sam Jack Paul Otto Finn Hugo Carl Dan Adam Luke Noah Rob")
NAMES = GIRLS + BOYS
PRONOUN = {name: "she" for name in GIRLS} | {name: "he" for name in BOYS}
HIM = {"she": "her", "he": "him"}
HIS = {"she": "her", "he": "his"}

COLOURS = words("red blue green yellow black white brown pink grey purple")
THINGS = words("ball book cup hat doll key kite lamp bag drum box pen coin ring spoon flag shell stick rope bell")
FRUITS = words("apple pear plum grape lemon peach banana cherry melon fig")
VEGETABLES = words("carrot potato onion bean pea cabbage tomato corn leek radish")
DRINKS = words("water milk tea juice coffee cocoa")
MEALS = words("soup rice bread cheese pizza salad cake pie fish honey")
PLACES = words("park shop school kitchen garden forest library market museum zoo office bakery castle barn cave tower")
CLOTHES = words("shirt coat hat shoe sock scarf glove dress belt skirt jacket boot")
BODY = words("hand foot head nose ear eye arm leg knee mouth chin thumb")
VEHICLES = words("car bus train bike boat ship plane truck tram van")
INSTRUMENTS = words("drum piano flute violin guitar trumpet harp horn")
PLANTS = words("rose oak pine tulip daisy fern moss grass ivy palm")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
SEASONS = words("spring summer autumn winter")
NUMBER_WORDS = words("zero one two three four five six seven eight nine ten eleven twelve")

# Words of one kind, the raw material of classification and odd-one-out. No word is of two of these kinds.
KINDS = {
    "animal": tuple(animal.name for animal in ANIMALS),
    "fruit": FRUITS,
    "vegetable": VEGETABLES,
    "drink": DRINKS,
    "colour": COLOURS,
    "job": tuple(job for job, _, _ in JOBS),
    "vehicle": VEHICLES,
    "instrument": INSTRUMENTS,
    "plant": PLANTS,
    "body part": BODY,
    "piece of clothing": CLOTHES,
    "day": DAYS,
    "month": MONTHS,
}
