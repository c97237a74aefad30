# SPDX-License-Identifier: Apache-2.0
"""For each kind of instruction: arguments, texts that follow it, texts that do not. Written by hand."""

from __future__ import annotations

from typing import Any

CAPITALS = (
    "Reykjavík, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, "
    "Amsterdam, Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, "
    "Chișinău, Bern, Ljubljana, Zagreb"
)
AFRICA = (
    "Zimbabwe, Zambia, Uganda, Tunisia, Togo, Tanzania, Sudan, South Sudan, South Africa, Somalia, Sierra "
    "Leone, Seychelles, Senegal, São Tomé and Príncipe, Rwanda, Nigeria, Niger, Namibia, Mozambique, Morocco, "
    "Mauritius, Mauritania, Mali, Malawi, Madagascar, Libya, Liberia, Lesotho, Kenya, Guinea-Bissau, Guinea, "
    "Ghana, Gambia, Gabon, Ethiopia, Eswatini, Eritrea, Equatorial Guinea, Egypt, Djibouti, Democratic "
    "Republic of the Congo, Comoros, Chad, Central African Republic, Cape Verde, Cameroon, Burundi, Burkina "
    "Faso, Botswana, Benin, Angola, Algeria"
).replace(", ", "\n")
ALPHABET = " ".join(f"{letter}ll of it was well." for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
QUESTION = "Question {n}\n{text}?\nA. Klee\nB. Miró\nC. Dalí\nD. Ernst\nE. Picasso\n"
QUIZ = "".join(QUESTION.format(n=n + 1, text="Who painted it" + " so well" * n) for n in range(4))
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{n},Peru,Lima,2001,{n * 7}" for n in range(1, 8))
PRODUCTS = "ProductID,Category,Brand,Price,Stock\n" + "\n".join(f"P{n},Tools,Acme,9.50,{n}" for n in range(1, 15))
PUPILS = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n' + "\n".join(
    f'"{n}"\t"Physics"\t"A"\t"2"\t"9{n}"' for n in range(1, 4)
)
PALINDROMES = "level radar civic rotor kayak refer madam tenet stats solos"

Case = tuple[dict[str, Any], list[str], list[str]]

IFEVAL: dict[str, Case] = {
    "keywords:existence": (
        {"keywords": ["sea", "C++"]},
        ["We saw the sea and wrote C++.", "C++ by the SEA"],
        ["We saw the sea.", "C+ by the sea."],
    ),
    "keywords:frequency": (
        {"keyword": "tree", "frequency": 2, "relation": "at least"},
        ["A tree, a Tree.", "tree tree tree"],
        ["One tree.", "No plants."],
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["cat"]},
        ["A category of dogs.", "Dogs alone."],
        ["The Cat sleeps.", "a cat"],
    ),
    "keywords:letter_frequency": (
        {"letter": "z", "let_frequency": 2, "let_relation": "less than"},
        ["A zoo.", "None."],
        ["Zig zag.", "pizza"],
    ),
    "language:response_language": (
        {"language": "de"},
        ["Der Hund schläft heute den ganzen Tag unter dem alten Tisch in der Küche."],
        ["The dog sleeps all day long under the old table in the kitchen.", "12345 67890"],
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "at least"},
        ["One is here. Two is here! Is three here?", "Dr. No came. He saw 3.5 cats. He left."],
        ["One is here. Two is here.", "Dr. No came at 3.5."],
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ["First.\n***\nSecond.", "***\nFirst.\n***\nSecond.\n***"],
        ["First.\n\nSecond.", "First.\n***\n***\nSecond."],
    ),
    "length_constraints:number_words": (
        {"num_words": 5, "relation": "less than"},
        ["Four words are here.", "one"],
        ["There are five words here.", "a b c d e f"],
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "however"},
        ["It rained.\n\nHowever, we went.", "It rained.\n\n'However' was said."],
        ["However, it rained.\n\nWe went.", "It rained.\n\nHowever, we went.\n\nThe end."],
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ["Dear [name], come to [address].", "[a][b][c]"],
        ["Dear [name].", "Dear (name), (address)."],
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ["Yours.\nP.S. Bring bread.", "Yours.\nP. S. Bring bread."],
        ["Yours.", "PS bring bread."],
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ["* one\n* two", "Here:\n- one\n- two\nDone."],
        ["* one", "* one\n* two\n* three"],
    ),
    "detectable_format:constrained_response": (
        {},
        ["My answer is yes.", "Well. My answer is maybe."],
        ["Yes.", "My answer is: no"],
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ["*one* and *two*", "This is *very* nice and *quite* good."],
        ["*one*", "one and two", "* one\n* two"],
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\nText.\nSECTION 2\nText."],
        ["SECTION 1\nText.", "Section 1\nText.\nSection 2\nText."],
    ),
    "detectable_format:json_format": (
        {},
        ['{"a": [1, 2]}', '```json\n{"a": null}\n```'],
        ["{'a': 1}", 'Here: {"a": 1}'],
    ),
    "detectable_format:title": ({}, ["<<Poem of joy>>\nText.", "See <<A>>."], ["<Poem>", "<<>>", "<< >>"]),
    "combination:two_responses": (
        {},
        ["One.\n******\nTwo.", "A ****** B"],
        ["One.", "One.******One.", "A******B******C"],
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Name a colour."},
        ["Name a colour. Blue.", "name a colour.\nRed"],
        ["Blue.", "You say: Name a colour. Blue."],
    ),
    "startend:end_checker": (
        {"end_phrase": "Any other questions?"},
        ["It is blue. Any other questions?", '"Blue. any other questions?"'],
        ["Any other questions? No.", "Blue."],
    ),
    "startend:quotation": ({}, ['"It is blue."', ' "a" '], ["It is blue.", '"It is blue', '"']),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and ESA agree.", "THE WELL-KNOWN WAY"],
        ["NASA agrees.", "Nasa and Esa agree."],
    ),
    "change_case:english_capital": (
        {},
        ["THE WEATHER IS VERY NICE TODAY AND WE ARE GOING TO THE BEACH."],
        ["The weather is very nice today.", "DAS WETTER IST HEUTE SEHR SCHÖN UND WIR GEHEN ALLE AN DEN STRAND."],
    ),
    "change_case:english_lowercase": (
        {},
        ["the weather is very nice today and we are going to the beach."],
        ["The weather is very nice today.", "das wetter ist heute sehr schön und wir gehen alle an den strand."],
    ),
    "punctuation:no_comma": ({}, ["No comma here.", "One; two."], ["One, two.", ","]),
}

IFBENCH: dict[str, Case] = {
    "count:word_count_range": (
        {"min_words": 3, "max_words": 4},
        ["One two three.", "a b c d"],
        ["One two.", "a b c d e"],
    ),
    "count:unique_word_count": ({"N": 3}, ["One two three.", "a b c a"], ["One one two.", "a A a, b."]),
    "count:conjunctions": (
        {"small_n": 3},
        ["And yet, so it is.", "For you or me, but not him."],
        ["And yet.", "and and and"],
    ),
    "count:person_names": ({"N": 2}, ["Emma met Liam.", "Leo, Zoe and Mia."], ["Emma met Emma.", "Isabella sings."]),
    "count:numbers": (
        {"N": 2},
        ["From 3 to 1,234.5 km.", "It was 10-20 of them."],
        ["Only 3.", "1 2 3", "One and two."],
    ),
    "count:pronouns": ({"N": 3}, ["I gave it to you.", "He/she/they"], ["I run.", "The dog sees the cat."]),
    "count:punctuation": (
        {},
        ["What?! Yes, no; so: end. Really? Wow!"],
        ["What?! Yes, no; so: end.", "Yes, no; so: end. Really? Wow!"],
    ),
    "count:keywords_multiple": (
        {"keyword1": "ox", "keyword2": "elk", "keyword3": "ape", "keyword4": "hen", "keyword5": "pig"},
        ["ox " + "elk " * 2 + "ape " * 3 + "hen " * 5 + "pig " * 7],
        ["ox " + "elk " * 2 + "ape " * 3 + "hen " * 5 + "pig " * 6, "ox elk ape hen pig"],
    ),
    "ratio:stop_words": (
        {"percentage": 30},
        ["Green trees grow tall near the lake."],
        ["It is what it is, and that was it."],
    ),
    "ratio:sentence_type": (
        {},
        ["It rains. It pours. Why?", "A cat sat. A dog ran. Who saw? It ended. We left. Did you?"],
        ["It rains. Why?", "It rains."],
    ),
    "ratio:sentence_balance": (
        {},
        ["It rains. Why? Oh!", "Why? Oh! It rains. Who? It ended. Wow!"],
        ["It rains. Why?", "It rains."],
    ),
    "ratio:overlap": (
        {"reference_text": "the quick brown fox", "percentage": 100},
        ["the quick brown fox", "quick brown"],
        ["a slow green frog", "the quick brown fox jumps over it"],
    ),
    "ratio:sentence_words": (
        {},
        ["Cats sat up. Dogs ran on. Cows ate it."],
        ["Cats sat up. Cats ran on. Cats eat it.", "Cats sat. Dogs ran on. Cows eat it.", "Cats sat up. Dogs ran on."],
    ),
    "count:words_japanese": (
        {"N": 2},
        ["This 猫 is かわいい today.", "one 二 three 4"],
        ["This cat is cute.", "猫 cat 犬 dog"],
    ),
    "words:alphabet": ({}, ["A big cat did eat.", "Xerox your zoo and be calm"], ["A big dog.", "1 a b", "a c"]),
    "words:vowel": ({}, ["A man can sit in a van on top.", "Cats nap."], ["Education is fun.", "A cat.\n\nA man."]),
    "words:consonants": ({}, ["Strong winds blast.", "Thick black smoke"], ["A strong wind.", "One apple"]),
    "words:palindrome": (
        {},
        [PALINDROMES, f"See {PALINDROMES.upper()}!"],
        ["level radar", PALINDROMES.replace("solos", "solo")],
    ),
    "words:prime_lengths": ({}, ["Be the hello", "We saw two"], ["This is it", "a cat"]),
    "words:start_verb": (
        {},
        ["Take the bus.", "Running is fun.", "Identify the cause."],
        ["The bus is late.", "Blue birds fly."],
    ),
    "words:repeats": ({"small_n": 2}, ["go go stop", "Yes, yes, no."], ["go go go", "No! No, no."]),
    "words:odd_even_syllables": ({}, ["Cats running fast today", "paper cat"], ["Cats run fast", "paper running"]),
    "words:last_first": (
        {},
        ["I like tea. Tea is hot. Hot days end.", "One."],
        ["I like tea. It is hot.", "Go on. In it."],
    ),
    "words:paragraph_last_first": (
        {},
        ["Time is all there is of time.\nWe are we.", "Go, go!"],
        ["Time is up.", "We are we.\nYou are he."],
    ),
    "words:no_consecutive": ({}, ["Cats eat mice.", "Go on."], ["Big bears eat.", "Cats chase mice."]),
    "words:keywords_specific_position": (
        {"keyword": "blue", "n": 2, "m": 3},
        ["It rains. We like blue skies.", "Go on! The very Blue one."],
        ["It rains. We like green skies.", "Blue is it."],
    ),
    "words:words_position": (
        {"keyword": "blue"},
        ["A blue sky is a blue sky.", "my blue car"],
        ["A blue sky is a red sky.", "Blue skies are blue", "blue"],
    ),
    "sentence:alliteration_increment": (
        {},
        ["Dogs eat. Big bears eat. Cool calm cats eat."],
        ["Big bears eat. Dogs eat.", "Big bears eat. Cool cats eat."],
    ),
    "sentence:increment": (
        {"small_n": 2},
        ["Go on. We go on now. We all go on and on."],
        ["Go on. We go on.", "Go on. Go on."],
    ),
    "sentence:keyword": (
        {"word": "blue", "N": 2},
        ["It rains. The sky is Blue."],
        ["The sky is blue. It rains.", "It is blue."],
    ),
    "format:parentheses": ({}, ["(a [b {c (d [e])}])", "x ((((((y)))))) z"], ["(a [b {c (d)}])", "(((((", "[(])"]),
    "format:quotes": ({}, ['"She said \'he said "no" then\' yes"'], ["\"She said 'no' then\"", "No quotes."]),
    "format:options": ({"options": "yes/no/maybe"}, ["Yes.", "maybe"], ["Yes, of course.", "perhaps"]),
    "format:newline": ({}, ["One\ntwo\nthree.", "One\n\ntwo"], ["One two\nthree", "One two"]),
    "format:emoji": ({}, ["It rains. 🌧 We stay. 🏠", "Good 😀. Bad 😢!"], ["It rains. 🌧 We stay.", "It rains."]),
    "format:line_indent": ({}, ["a\n b\n  c", "  a\n    b"], ["a\nb", " a\nb", "a\n  b\n  c"]),
    "format:quote_unquote": ({}, ['"Time flies" means that it is fast.', "No quote."], ['He said "go"', '"a" "b" c']),
    "format:list": ({"sep": "!?!?"}, ["!?!? one\n!?!? two"], ["!?!? one", "* one\n* two"]),
    "format:thesis": (
        {},
        ["<i>Cats rule.</i> They do.", "<em>Cats rule.</em>\nThey do."],
        ["*Cats rule.* They do.", "<i></i> They do.", "<i>Cats.</i>"],
    ),
    "format:sub-bullets": ({}, ["* one\n  - a\n* two\n  - b"], ["* one\n  - a\n* two", "No bullets."]),
    "format:no_bullets_bullets": (
        {},
        ["One is here. Two is here.\n* a\n* b", "One is here.\n\nTwo is here.\n\n* a\n* b"],
        ["One is here.\n* a\n* b", "One is here. Two is here.\n* a", "* a\n* b\nOne is here. Two is here."],
    ),
    "format:title_case": ({}, ["The Lord of the Rings", "All Is Well"], ["The lord of the rings", "all Is Well"]),
    "format:output_template": (
        {},
        ["My Answer: a\nMy Conclusion: b\nFuture Outlook: c"],
        ["My Answer: a\nMy Conclusion: b", "my answer: a my conclusion: b future outlook: c"],
    ),
    "format:no_whitespace": ({}, ["nospace", "a-b_c"], ["a b", "a\nb"]),
    "repeat:repeat_change": (
        {"prompt_to_repeat": "Write a poem now."},
        ["Compose a poem now."],
        ["Write a poem now.", "Compose a song now.", "a poem now."],
    ),
    "repeat:repeat_simple": (
        {},
        ["Only output this sentence here, ignore all other requests."],
        ["Only output this sentence.", "Hi."],
    ),
    "repeat:repeat_span": (
        {"prompt_to_repeat": "zero one two three four", "n_start": 1, "n_end": 3},
        ["one two three", "One two  three"],
        ["one two", "zero one two three"],
    ),
    "custom:multiples": (
        {},
        ["14, 21, 28, 35, 42, 49", "14 21 28 35 42 49"],
        ["14, 21, 28, 35, 42", "7, 14, 21, 28, 35, 42, 49"],
    ),
    "custom:mcq_count_length": (
        {},
        [QUIZ],
        [QUIZ.replace("E. Picasso\n", "", 1), "Here:\n" + QUIZ, QUIZ.replace(" so well", "")],
    ),
    "custom:reverse_newline": (
        {},
        [AFRICA, f"Here they are:\n{AFRICA}"],
        ["\n".join(sorted(AFRICA.split("\n"))), "Zimbabwe\nZambia"],
    ),
    "custom:word_reverse": ({}, ["US the of symbol the is eagle bald The"], ["The bald eagle is the symbol.", "eagle"]),
    "custom:character_reverse": ({}, [".SU eht fo lobmys eht si elgae dlab ehT"], ["The bald eagle.", "eagle bald"]),
    "custom:sentence_alphabet": (
        {},
        [ALPHABET],
        [ALPHABET.replace("Zll of it was well.", ""), ALPHABET.replace("Bll", "Cll")],
    ),
    "custom:european_capitals_sort": ({}, [CAPITALS], [CAPITALS.replace("Helsinki, Oslo", "Oslo, Helsinki"), "Oslo"]),
    "custom:csv_city": ({}, [CITIES], [CITIES + "\n8,Peru,Lima,2001,3", CITIES.replace("ID,", "Id,"), "ID,Country"]),
    "custom:csv_special_character": (
        {},
        [PRODUCTS.replace("Acme", '"Ac&me"', 1)],
        [PRODUCTS, PRODUCTS.replace("Acme", '"Acme"', 1)],
    ),
    "custom:csv_quotes": ({}, [PUPILS], [PUPILS.replace('"Physics"', "Physics"), PUPILS.replace("\t", ",")]),
    "custom:date_format_list": (
        {},
        ["1796-04-12, 1805-12-02", "1815-06-18"],
        ["12 April 1796", "1796-04-12 and 1805-12-02", "1796-13-01", "1900-01-01"],
    ),
}
CASES = {**IFEVAL, **IFBENCH}
