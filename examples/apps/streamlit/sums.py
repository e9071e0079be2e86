"""Adds up what a user enters, remembers it, and tells the sum as a stream."""

import time

import streamlit as st

st.title("Sums")

terms = st.session_state.setdefault("terms", [])


def add():
    terms.append(st.session_state.term)


st.number_input("Term", key="term", step=1, on_change=add)
st.write(f"{len(terms)} terms, sum {sum(terms)}")


def told():
    for term in terms:
        yield f"{term} "
        time.sleep(0.05)
    yield "told."


st.write_stream(told)
