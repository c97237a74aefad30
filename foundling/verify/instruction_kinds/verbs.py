# SPDX-License-Identifier: Apache-2.0
"""Is a word an English verb? A list of the verbs that answers begin with, in all their regular forms, and the suffixes
that make verbs. A tagger knows more from the sentence around the word; it also needs a model of 20 MB.
"""

from __future__ import annotations

_BASES = frozenset(
    "accept achieve act adapt add address adjust adopt agree aim allow analyze analyse answer apply approach arrange "  # noqa: SIM905
    "ask assemble assess assign assume attach attend avoid bake be beat become begin believe blend boil book break "
    "breathe bring browse build buy calculate call care carry catch celebrate change charge check choose clean clear "
    "click close collect combine come compare complete compute configure connect consider consult contact continue "
    "contribute convert cook copy cover create cut dance decide declare decorate define delete deliver demonstrate "
    "describe design determine develop discover discuss display divide do download drag draw dream drink drive drop "
    "eat edit embark embrace employ enable encourage engage enjoy ensure enter establish estimate evaluate examine "
    "execute exercise expand expect experience experiment explain explore express extend extract face fall feel fetch "
    "fill find finish fix focus fold follow forget form gather generate get give go grab greet grow guide handle have "
    "hear help hold hope host identify imagine implement import improve include incorporate increase inform initialize "
    "insert inspect install introduce invest investigate invite join jump keep kick know laugh launch lead learn leave "
    "let level leverage lift limit listen live load locate look lose love lower maintain make manage marvel mark "
    "maximize measure meet minimize mix modify monitor move multiply navigate need note notice observe offer open "
    "optimize order organize overcome paint pass pay perform pick place plan plant play post pour practice prepare "
    "present preserve press prevent print prioritize proceed produce promote protect prove provide publish pull "
    "purchase push put raise reach read realize recall receive recognize recommend record reduce refer reflect "
    "register relax release remain remember remove repeat replace report represent request research resolve respect "
    "respond rest return review revise rewrite ride rise roll run save say schedule search secure see seek select sell "
    "send separate serve set share shift show simplify sing sit sleep slice smile solve sort speak specify spend "
    "sprinkle stand start state stay step stir stop store strive structure struggle study submit subtract succeed "
    "suggest summarize supply support suppose take talk target taste teach tell test thank think throw touch track "
    "train transform translate travel treat trust try turn type understand unlock update upgrade use utilize validate "
    "verify view visit visualize wait wake walk want wash watch wear welcome win wonder work worry write yield".split()
)
_IRREGULAR = frozenset(
    "am is are was were been being has had having does did done made went gone came took taken got gave given saw "  # noqa: SIM905
    "seen knew known thought found left felt kept held began begun brought bought wrote written said told ran built "
    "sent spent stood lost met led understood became grew grown drew drawn drove driven ate eaten fell fallen flew "
    "rose chose chosen spoke spoken can could will would shall should may might must".split()
)
_MODALS = frozenset("can could will would shall should may might must".split())  # noqa: SIM905
"""a tagger counts them apart from verbs (MD)"""


def is_verb(word: str) -> bool:
    """Any form of a verb of the list: give, gives, giving, given; or a word that ends as only verbs do."""
    word = word.lower().split("'")[0].split("’")[0]
    if word in _MODALS:
        return False
    if word in _BASES or word in _IRREGULAR:
        return True
    stems = [word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ing"), word.removesuffix("ed")]
    stems += [word.removesuffix("ing") + "e", word.removesuffix("d")] if word.endswith(("ing", "d")) else []
    stems += [word.removesuffix(end)[:-1] for end in ("ing", "ed") if word.endswith(end)]  # stopping, planned
    stems += [word.removesuffix(end) + "y" for end in ("ies", "ied") if word.endswith(end)]
    return any(stem in _BASES for stem in stems) or (len(word) > 5 and word.endswith(("ize", "ise", "ify")))
