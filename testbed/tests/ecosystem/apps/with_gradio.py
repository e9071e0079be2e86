"""A Gradio app, whose calls are known to the copy that took them and to no other."""

import os

import gradio

with gradio.Blocks() as app:
    name = gradio.Textbox()
    greeting = gradio.Textbox()
    gradio.Button("Greet").click(lambda name: f"greet {name}", name, greeting, api_name="greet")

app.launch(server_name="127.0.0.1", server_port=int(os.environ["PORT"]), quiet=True)
