"""A page to try a trained run: ``python -m jaxattn.demo --run=RUN``.

`answer` turns the bytes of an image into what the page shows, `server` serves the page. The server
is Python's own: the page is for one person on one machine, needs three files and one request, and
so installs nothing and asks nothing of a network. Images stay in memory for the length of a
request.
"""
