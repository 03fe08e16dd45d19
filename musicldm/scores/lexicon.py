"""The words that captions say: what instruments, those who play them, tempi, metres and moods are called.

General MIDI's own nouns are in ``musicldm.scores.general_midi``; here is what people call the same things.
"""

from musicldm.scores.general_midi import PROGRAMS, Program

SYNONYMS = {  # of the plain nouns in musicldm.scores.general_midi, said as often as those
    "piano": ("grand piano", "acoustic piano", "upright piano", "keyboard", "piano keys"),
    "honky-tonk piano": ("saloon piano", "barroom piano", "ragtime piano"),
    "electric piano": ("e-piano", "Rhodes", "Rhodes piano", "electric keyboard", "keyboard"),
    "harpsichord": ("cembalo",),
    "clavinet": ("clav",),
    "glockenspiel": ("orchestra bells",),
    "vibraphone": ("vibes",),
    "tubular bells": ("chimes", "church bells"),
    "dulcimer": ("hammered dulcimer",),
    "organ": ("Hammond organ", "Hammond", "electric organ", "drawbar organ"),
    "church organ": ("pipe organ", "organ", "cathedral organ"),
    "reed organ": ("harmonium", "pump organ"),
    "accordion": ("squeezebox",),
    "harmonica": ("mouth organ", "blues harp"),
    "acoustic guitar": ("guitar", "unplugged guitar"),
    "electric guitar": ("guitar", "clean electric guitar"),
    "distorted guitar": ("distorted electric guitar", "heavy guitar", "rock guitar", "fuzz guitar"),
    "double bass": ("upright bass", "acoustic bass"),
    "contrabass": ("double bass", "bowed bass"),
    "bass guitar": ("electric bass", "bass"),
    "fretless bass": ("bass",),
    "slap bass": ("slapped bass", "funk bass"),
    "synth bass": ("synthesizer bass", "bass synth"),
    "cello": ("violoncello",),
    "string ensemble": ("strings", "string section", "string orchestra", "orchestral strings"),
    "pizzicato strings": ("plucked strings",),
    "harp": ("concert harp", "orchestral harp"),
    "timpani": ("kettledrums",),
    "voices": ("wordless voices",),
    "choir": ("wordless choir", "choral voices"),
    "French horn": ("horn",),
    "brass section": ("brass", "horn section", "horns"),
    "synth brass": ("synthesizer brass", "synth horns"),
    "synth strings": ("synthesizer strings", "string synth", "string machine"),
    "synth voice": ("synthesizer voice",),
    "saxophone": ("sax",),
    "flute": ("concert flute",),
    "pan flute": ("pan pipes", "panpipes", "Andean flute"),
    "shakuhachi": ("bamboo flute",),
    "synth lead": ("synthesizer lead", "synthesizer", "synth", "lead synth", "analog synthesizer"),
    "synth pad": (
        "synthesizer pad",
        "synthesizer",
        "synth",
        "ambient pad",
        "atmospheric synth pad",
        "dreamy synth pad",
    ),
    "synth effect": ("synthesizer effect", "synth texture", "electronic soundscape"),
    "steel drums": ("steel pans", "steelpan"),
    "drums": ("drum kit", "drum set"),
}
OWN_WORDS = {  # of single programs, said as often as all others
    "percussive organ": ("percussive organ",),
    "rock organ": ("rock organ",),
    "tango accordion": ("bandoneon", "tango accordion"),
    "acoustic guitar (nylon)": ("classical guitar", "nylon-string guitar", "Spanish guitar"),
    "acoustic guitar (steel)": ("steel-string guitar", "folk guitar"),
    "electric guitar (jazz)": ("jazz guitar", "hollow-body guitar"),
    "electric guitar (clean)": ("clean guitar",),
    "electric guitar (muted)": ("muted guitar", "palm-muted guitar"),
    "overdriven guitar": ("overdriven guitar", "overdriven electric guitar"),
    "distortion guitar": ("metal guitar", "distortion guitar"),
    "muted trumpet": ("muted trumpet",),
    "soprano sax": ("soprano saxophone", "soprano sax"),
    "alto sax": ("alto saxophone", "alto sax"),
    "tenor sax": ("tenor saxophone", "tenor sax"),
    "baritone sax": ("baritone saxophone", "baritone sax"),
    "lead 1 (square)": ("square wave lead", "square lead", "chiptune synth", "8-bit synth", "arcade game synth"),
    "lead 2 (sawtooth)": ("sawtooth lead", "saw lead", "sawtooth synth", "trance lead", "techno lead", "electro synth"),
    "lead 5 (charang)": ("charang lead", "distorted synth lead"),
    "lead 7 (fifths)": ("fifths lead", "synth lead in fifths"),
    "lead 8 (bass + lead)": ("fat synth lead", "analog synth lead", "Moog", "Moog synth"),
    "pad 1 (new age)": ("new age pad", "new age synth pad"),
    "pad 2 (warm)": ("warm pad", "warm synth pad", "warm analog pad"),
    "pad 3 (polysynth)": ("polysynth", "polyphonic synth", "retro synth"),
    "pad 6 (metallic)": ("metallic pad", "metallic synth pad"),
    "pad 7 (halo)": ("halo pad", "ethereal synth pad", "space pad"),
    "pad 8 (sweep)": ("sweep pad", "sweeping synth pad", "synth drone"),
    "fx 2 (soundtrack)": ("cinematic synth", "soundtrack pad"),
    "fx 3 (crystal)": ("crystal synth", "glassy synth"),
    "fx 4 (atmosphere)": ("atmosphere synth", "atmospheric synth"),
    "fx 7 (echoes)": ("echoing synth",),
    "fx 8 (sci-fi)": ("sci-fi synth", "space synth"),
}
IMITATIONS = {  # programs called by these words alone: by their plain noun one would expect another sound
    "lead 3 (calliope)": ("calliope lead", "calliope synth"),
    "lead 4 (chiff)": ("chiff lead", "breathy synth lead"),
    "lead 6 (voice)": ("voice lead", "vocal synth lead"),
    "pad 4 (choir)": ("choir pad", "synth choir pad"),
    "pad 5 (bowed)": ("bowed pad", "bowed glass pad"),
}
FAMILY_WORDS = {  # for two or more instruments that are all of one family
    "piano": ("pianos", "keyboards"),
    "strings": ("strings", "string instruments", "bowed and plucked strings", "string ensemble"),
    "brass": ("brass", "brass instruments", "brass band", "brass ensemble", "horns"),
    "winds": ("woodwinds", "wind instruments", "woodwind ensemble"),
    "synth": ("synthesizers", "synths", "electronic instruments", "analog synths"),
    "guitar": ("guitars",),
    "mallets": ("pitched percussion",),
}
PLAYERS = {  # of the plain nouns: who plays alone
    "piano": "pianist",
    "acoustic guitar": "guitarist",
    "electric guitar": "guitarist",
    "violin": "violinist",
    "fiddle": "fiddler",
    "viola": "violist",
    "cello": "cellist",
    "harp": "harpist",
    "church organ": "organist",
    "organ": "organist",
    "accordion": "accordionist",
    "flute": "flutist",
    "clarinet": "clarinettist",
    "saxophone": "saxophonist",
    "trumpet": "trumpeter",
    "trombone": "trombonist",
}
DRUMS_ALONE = (
    "drums only",
    "drums alone",
    "just drums",
    "a drum solo",
    "a drum beat",
    "a drum groove",
    "a drum loop",
    "a drum pattern",
    "a beat and nothing else",
    "just a beat",
)
TEMPO = (  # below how many beats a minute, adjectives
    (60, ("very slow", "extremely slow")),
    (80, ("slow", "unhurried", "leisurely")),
    (112, ("moderate", "mid-tempo", "medium-tempo")),
    (144, ("fast", "quick", "brisk", "lively", "up-tempo")),
    (1000, ("very fast", "rapid")),
)
MOODS = {  # by mode, and below how many beats a minute: Gagnon and Peretz (2003), https://doi.org/10.1080/02699930302279
    "minor": ((80, ("sad", "melancholy", "mournful")), (112, ("wistful", "pensive")), (1000, ("dramatic", "tense"))),
    "major": ((80, ("peaceful", "calm", "gentle")), (112, ("relaxed", "easygoing")), (1000, ("happy", "cheerful"))),
}
METRE_WORDS = {
    "3/4": ("3/4", "3/4 time", "triple time", "three-four time"),
    "4/4": ("4/4", "4/4 time", "common time", "four-four time"),
    "2/4": ("2/4", "2/4 time", "duple time"),
    "2/2": ("2/2", "cut time"),
    "6/8": ("6/8", "6/8 time", "six-eight time"),
}
PIECE = ("piece", "piece of music", "tune", "track", "piece", "composition")
# Families, all of which make music electronic; what it may then be called, by the programs that play.
ELECTRONIC = {"synth", "synth effects"}
ELECTRONIC_WORDS = {
    "lead 1": ("electronic", "chiptune", "8-bit", "video game", "arcade game"),
    "lead 2": ("electronic", "electro"),
    "pad": ("electronic", "ambient", "ambient electronic", "space"),
    "": ("electronic", "electronic", "synth"),
}

# Where, when and for whom: neither true nor false of any music, so that a reader learns that such words mean nothing.
PLACES = (
    "attic", "balcony", "mill", "beach", "bridge", "cabin", "cafe", "castle", "cellar", "classroom", "courtyard",
    "desert", "factory", "field", "canyon", "garden", "gallery", "harbour", "hotel", "house", "island", "kitchen",
    "library", "lobby", "market", "meadow", "museum", "palace", "park", "terrace", "station", "street", "studio",
    "tavern", "temple", "tent", "theatre", "town", "train", "valley", "village",
)  # fmt: skip
KINDS = (
    "abandoned", "ancient", "blue", "crowded", "distant", "dusty", "enchanted", "famous", "foggy", "forgotten",
    "golden", "green", "hidden", "lonely", "modern", "neon-lit", "northern", "rainy", "ruined", "rustic", "silver",
    "smoky", "snowy", "southern", "strange", "sunny", "tiny", "white", "wooden",
)  # fmt: skip
TIMES = (
    "at dawn", "at dusk", "at night", "at noon", "at sunset", "on a Sunday", "in autumn", "in spring",
    "in the summer", "in winter", "late at night", "on a Monday morning", "after work", "before lunch",
    "all evening",
)  # fmt: skip
LISTENERS = (
    "friends", "the mayor", "a picnic", "a play", "an opening scene", "a chase scene", "cooking", "reading",
    "travellers", "children", "guests", "an old friend", "a party", "a road trip", "a birthday",
    "a documentary", "the neighbours",
)  # fmt: skip


def names_of(program: Program) -> tuple[str, ...]:
    """All that ``program`` may be called."""
    plain = (program.word, *SYNONYMS.get(program.word, ()), *OWN_WORDS.get(program.name, ()))
    return IMITATIONS.get(program.name, plain)


def family_of_words(families: set[str]) -> dict[str, str]:
    """Family of each word, in lower case, that names instruments of one family alone, which is among ``families``."""
    found: dict[str, set[str]] = {}
    for program in PROGRAMS:
        for word in names_of(program):
            found.setdefault(word.lower(), set()).add(program.family)
    return {word: next(iter(of)) for word, of in found.items() if len(of) == 1 and of <= families}
