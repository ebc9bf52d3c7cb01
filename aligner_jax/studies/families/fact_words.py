"""Answers of invented facts: single words, none of which is part of a question."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FOUNDERS = _words(
    "Alice Arthur Beatrice Bernard Carla Conrad Daphne Dennis Edith Edward Fiona Frederick Gloria Gregory Hannah "
    "Harold Irene Isaac Joanna Julian Katherine Kevin Leonard Lydia Martha Maurice Natalie Norman Olga Oscar "
    "Patricia Philip Rachel Raymond Sophia Stephen Theresa Thomas Ursula Victor Vivian Walter Yvonne Zachary"
)
COLOURS = _words(
    "amber aqua azure beige black blue bronze brown charcoal copper coral cream crimson cyan emerald gold green "
    "grey indigo ivory jade khaki lavender lemon lilac lime magenta maroon mauve mustard navy ochre olive orange "
    "peach pink plum purple red ruby salmon scarlet silver tan teal turquoise violet white yellow"
)
PROFESSIONS = _words(
    "accountant actor architect astronomer baker barber beekeeper biologist blacksmith bricklayer butcher "
    "carpenter chemist coach cook dancer dentist diver doctor electrician engineer farmer firefighter fisherman "
    "florist gardener geologist jeweller journalist judge lawyer librarian mechanic midwife miner musician nurse "
    "optician painter pilot plumber poet potter sailor sculptor shepherd surgeon tailor teacher translator waiter "
    "weaver"
)
DISHES = _words(
    "bagels burritos cheesecake chili chowder couscous curry dumplings enchiladas falafel fondue gnocchi goulash "
    "granola gumbo hamburgers hummus kebab lasagna lentils macaroni meatballs meatloaf moussaka muffins noodles "
    "omelette paella pancakes pizza polenta porridge quiche ramen ratatouille ravioli risotto salad sandwiches "
    "sausages soup spaghetti steak stew sushi tacos tofu waffles"
)
