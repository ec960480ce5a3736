"""The page that `lineas app` serves: sliders for steerings, and what a model makes of prompts with and without them.

What the page does stands apart from the page: `desk`, `controls`, `makers` and `pictures` need no Gradio, and `page`
is the only file that knows it. Of lineas, all of them know what any user does.
"""
