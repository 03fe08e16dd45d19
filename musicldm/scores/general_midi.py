"""The facts of General MIDI 1 that rendering and captions need: 128 programs, their families, drums.

Programs are numbered 0 to 127 as on the wire (printed tables count from 1). A *family* here is what a listener
would call one kind of instrument; it may join parts of several of the sixteen groups of the standard (``GROUPS``).
"""

from typing import NamedTuple

DRUM_CHANNEL = 9  # counted from 0

GROUPS = (
    "piano",
    "chromatic percussion",
    "organ",
    "guitar",
    "bass",
    "strings",
    "ensemble",
    "brass",
    "reed",
    "pipe",
    "synth lead",
    "synth pad",
    "synth effects",
    "ethnic",
    "percussive",
    "sound effects",
)  # of eight programs each


class Program(NamedTuple):
    """One General MIDI program. ``low`` and ``high`` are the MIDI pitches between which it sounds natural."""

    number: int
    name: str  # of the standard, in lower case
    word: str  # the plain noun: "electric guitar" for all that are one
    family: str
    swap: str  # programs with equal ``swap`` stand in for each other without changing what a part is
    low: int
    high: int
    chords: bool  # plays several notes at once by nature


# name | word | family | swap | low | high | chords (c) or one note at a time (m)
_TABLE = """
acoustic grand piano|piano|piano|piano|21|108|c
bright acoustic piano|piano|piano|piano|21|108|c
electric grand piano|piano|piano|piano|21|108|c
honky-tonk piano|honky-tonk piano|piano|piano|21|108|c
electric piano 1|electric piano|piano|electric piano|28|103|c
electric piano 2|electric piano|piano|electric piano|28|103|c
harpsichord|harpsichord|harpsichord|harpsichord|29|89|c
clavinet|clavinet|harpsichord|harpsichord|36|96|c
celesta|celesta|mallets|bells|60|108|c
glockenspiel|glockenspiel|mallets|bells|72|108|c
music box|music box|mallets|bells|60|96|c
vibraphone|vibraphone|mallets|mallets|53|89|c
marimba|marimba|mallets|mallets|45|96|c
xylophone|xylophone|mallets|mallets|65|96|c
tubular bells|tubular bells|mallets|tubular bells|60|77|c
dulcimer|dulcimer|mallets|dulcimer|48|84|c
drawbar organ|organ|organ|organ|36|96|c
percussive organ|organ|organ|organ|36|96|c
rock organ|organ|organ|organ|36|96|c
church organ|church organ|organ|church organ|28|108|c
reed organ|reed organ|organ|church organ|36|96|c
accordion|accordion|accordion|accordion|53|93|c
harmonica|harmonica|accordion|harmonica|60|96|m
tango accordion|accordion|accordion|accordion|53|93|c
acoustic guitar (nylon)|acoustic guitar|guitar|acoustic guitar|40|84|c
acoustic guitar (steel)|acoustic guitar|guitar|acoustic guitar|40|84|c
electric guitar (jazz)|electric guitar|guitar|clean guitar|40|86|c
electric guitar (clean)|electric guitar|guitar|clean guitar|40|86|c
electric guitar (muted)|electric guitar|guitar|clean guitar|40|76|c
overdriven guitar|distorted guitar|guitar|distorted guitar|40|86|c
distortion guitar|distorted guitar|guitar|distorted guitar|40|86|c
guitar harmonics|guitar harmonics|guitar|guitar harmonics|40|76|c
acoustic bass|double bass|bass|acoustic bass|28|60|m
electric bass (finger)|bass guitar|bass|bass guitar|28|60|m
electric bass (pick)|bass guitar|bass|bass guitar|28|60|m
fretless bass|fretless bass|bass|bass guitar|28|60|m
slap bass 1|slap bass|bass|slap bass|28|60|m
slap bass 2|slap bass|bass|slap bass|28|60|m
synth bass 1|synth bass|bass|synth bass|28|60|m
synth bass 2|synth bass|bass|synth bass|28|60|m
violin|violin|strings|violin|55|96|m
viola|viola|strings|viola|48|84|m
cello|cello|strings|cello|36|72|m
contrabass|contrabass|strings|contrabass|28|55|m
tremolo strings|tremolo strings|strings|tremolo strings|36|96|c
pizzicato strings|pizzicato strings|strings|pizzicato strings|36|96|c
orchestral harp|harp|harp|harp|24|103|c
timpani|timpani|timpani|timpani|36|57|m
string ensemble 1|string ensemble|strings|string ensemble|28|96|c
string ensemble 2|string ensemble|strings|string ensemble|28|96|c
synth strings 1|synth strings|synth|synth strings|36|96|c
synth strings 2|synth strings|synth|synth strings|36|96|c
choir aahs|choir|voices|voices|40|79|c
voice oohs|voices|voices|voices|40|84|c
synth voice|synth voice|synth|synth voice|48|84|c
orchestra hit|orchestra hit|orchestra hit|orchestra hit|48|72|c
trumpet|trumpet|brass|trumpet|54|84|m
trombone|trombone|brass|trombone|40|72|m
tuba|tuba|brass|tuba|28|55|m
muted trumpet|muted trumpet|brass|trumpet|54|84|m
french horn|French horn|brass|french horn|41|77|m
brass section|brass section|brass|brass section|36|84|c
synth brass 1|synth brass|synth|synth brass|36|96|c
synth brass 2|synth brass|synth|synth brass|36|96|c
soprano sax|saxophone|winds|high sax|54|87|m
alto sax|saxophone|winds|high sax|49|80|m
tenor sax|saxophone|winds|low sax|42|75|m
baritone sax|saxophone|winds|low sax|37|68|m
oboe|oboe|winds|oboe|58|91|m
english horn|English horn|winds|oboe|52|81|m
bassoon|bassoon|winds|bassoon|34|72|m
clarinet|clarinet|winds|clarinet|50|91|m
piccolo|piccolo|winds|flute|74|108|m
flute|flute|winds|flute|60|96|m
recorder|recorder|winds|flute|60|96|m
pan flute|pan flute|winds|pan flute|60|96|m
blown bottle|blown bottle|winds|pan flute|60|96|m
shakuhachi|shakuhachi|winds|pan flute|55|84|m
whistle|whistle|winds|whistle|60|88|m
ocarina|ocarina|winds|whistle|60|84|m
lead 1 (square)|synth lead|synth|synth lead|36|96|m
lead 2 (sawtooth)|synth lead|synth|synth lead|36|96|m
lead 3 (calliope)|synth lead|synth|synth lead|48|96|m
lead 4 (chiff)|synth lead|synth|synth lead|48|96|m
lead 5 (charang)|synth lead|synth|synth lead|36|96|m
lead 6 (voice)|synth lead|synth|synth lead|48|96|m
lead 7 (fifths)|synth lead|synth|synth lead fifths|36|96|m
lead 8 (bass + lead)|synth lead|synth|synth lead|24|84|m
pad 1 (new age)|synth pad|synth|synth pad|36|96|c
pad 2 (warm)|synth pad|synth|synth pad|36|96|c
pad 3 (polysynth)|synth pad|synth|synth pad|36|96|c
pad 4 (choir)|synth pad|synth|synth pad|36|96|c
pad 5 (bowed)|synth pad|synth|synth pad|36|96|c
pad 6 (metallic)|synth pad|synth|synth pad|36|96|c
pad 7 (halo)|synth pad|synth|synth pad|36|96|c
pad 8 (sweep)|synth pad|synth|synth pad|36|96|c
fx 1 (rain)|synth effect|synth effects|synth effect 1|36|96|c
fx 2 (soundtrack)|synth effect|synth effects|synth effect 2|36|96|c
fx 3 (crystal)|synth effect|synth effects|synth effect 3|36|96|c
fx 4 (atmosphere)|synth effect|synth effects|synth effect 4|36|96|c
fx 5 (brightness)|synth effect|synth effects|synth effect 5|36|96|c
fx 6 (goblins)|synth effect|synth effects|synth effect 6|36|96|c
fx 7 (echoes)|synth effect|synth effects|synth effect 7|36|96|c
fx 8 (sci-fi)|synth effect|synth effects|synth effect 8|36|96|c
sitar|sitar|plucked|sitar|48|77|c
banjo|banjo|plucked|banjo|48|84|c
shamisen|shamisen|plucked|koto|50|79|c
koto|koto|plucked|koto|55|84|c
kalimba|kalimba|plucked|kalimba|48|79|c
bagpipe|bagpipes|bagpipes|bagpipe|36|77|m
fiddle|fiddle|strings|fiddle|55|96|m
shanai|shanai|winds|shanai|48|72|m
tinkle bell|tinkle bell|percussion|tinkle bell|72|84|c
agogo|agogo|percussion|agogo|60|72|c
steel drums|steel drums|mallets|steel drums|52|76|c
woodblock|woodblock|percussion|woodblock|40|80|c
taiko drum|taiko drum|percussion|taiko|40|80|c
melodic tom|tom drums|percussion|tom|40|80|c
synth drum|synth drum|percussion|synth drum|40|80|c
reverse cymbal|reverse cymbal|percussion|reverse cymbal|40|80|c
guitar fret noise|fret noise|sound effects|120|36|96|c
breath noise|breath noise|sound effects|121|36|96|c
seashore|seashore sounds|sound effects|122|36|96|c
bird tweet|bird sounds|sound effects|123|36|96|c
telephone ring|telephone ring|sound effects|124|36|96|c
helicopter|helicopter noise|sound effects|125|36|96|c
applause|applause|sound effects|126|36|96|c
gunshot|gunshots|sound effects|127|36|96|c
"""


def _parse(table: str) -> tuple[Program, ...]:
    programs = []
    for number, line in enumerate(table.strip().splitlines()):
        name, word, family, swap, low, high, voices = line.split("|")
        programs.append(Program(number, name, word, family, swap, int(low), int(high), voices == "c"))
    return tuple(programs)


PROGRAMS = _parse(_TABLE)  # PROGRAMS[n].number == n, for n from 0 to 127


def group(program: int) -> str:
    """The one of the standard's sixteen groups that ``program`` (0 to 127) belongs to."""
    return GROUPS[program // 8]


# What a piece can be re-scored for, and the programs that may then be used. "drums" keeps the drums alone.
ORCHESTRATIONS: dict[str, tuple[int, ...]] = {
    "piano": (0, 1, 2, 3, 4, 5),
    "harpsichord": (6, 7),
    "mallets": (8, 9, 10, 11, 12, 13, 14, 15, 114),
    "organ": (16, 17, 18, 19, 20),
    "accordion": (21, 22, 23),
    "guitar": (24, 25, 26, 27, 28, 29, 30),
    "bass": (32, 33, 34, 35, 36, 37, 38, 39),
    "strings": (40, 41, 42, 43, 44, 45, 48, 49),
    "harp": (46,),
    "voices": (52, 53),
    "brass": (56, 57, 58, 59, 60, 61),
    "winds": (64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 77, 79),
    "synth": (38, 39, 50, 51, 54, 62, 63, *range(80, 96)),
    "plucked": (104, 105, 106, 107, 108),
    "drums": (),
}

DRUM_KITS = (0, 8, 16, 24, 25, 32, 40)  # standard, room, power, electronic, TR-808, jazz, brush (Roland GS)
KIT_PITCHES = frozenset((*range(35, 54), 55, 57, 59))  # drums and cymbals; other pitches are hand percussion
DRUM_LIKE = frozenset((47, *range(112, 114), *range(115, 120)))  # programs after which "no drums" would mislead
