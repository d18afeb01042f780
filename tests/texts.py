"""Any text, for hypothesis: st.text() by its codec takes seconds to be set up, this none."""

from functools import partial

from hypothesis import strategies as st

texts = partial(st.text, st.characters(exclude_categories=["Cs"]))  # surrogates are no characters
