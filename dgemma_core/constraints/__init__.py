"""Languages as automata over tokens, and predictions conditioned on a text being in one.

`language` holds the constraint as a value, `automaton` its language over tokens, `chain` the exact posterior over its
paths; `head` and `predicting` bring it to the vocabulary head. `patterns`, `json_schema`, `vocabulary`, `index` and
`building` make an automaton for a tokenizer, `checks` and `examples` say what does not fit. `form` and
`slots` are of templates whose slots are decided. The loops come here by `constraints.conditions`.
"""
